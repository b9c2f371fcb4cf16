"""Which records the task definitions beside it use, and what of a completion is the program."""

import re
from typing import Any

# Everything between the fences of a block, or to the end if it is not closed.
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)


def mbpp_test(docs: Any) -> Any:
    """MBPP's test split: the tasks 11 to 510."""
    return docs.filter(lambda doc: 11 <= doc["task_id"] <= 510)


def mbpp_shots(docs: Any) -> Any:
    """The three tasks that MBPP's authors show before each question."""
    shots = docs.filter(lambda doc: doc["task_id"] in (2, 3, 4))
    return shots.add_column("is_shot", [True] * len(shots))


def code_blocks(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """The first fenced block of each completion, or all of one that has none."""
    return [[_code(text) for text in texts] for texts in resps]


def after_prompts(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """Each completion after the function's header that it completes."""
    return [
        [doc["prompt"] + text for text in texts] for texts, doc in zip(resps, docs, strict=True)
    ]


def blocks_after_prompts(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """The block of each completion, which defines anew the function of the prompt before it.

    The prompt has the imports and the other functions that the block may need.
    """
    return [
        [f"{doc['prompt'].rstrip()}\n    pass\n\n{_code(text)}" for text in texts]
        for texts, doc in zip(resps, docs, strict=True)
    ]


def _code(text: str) -> str:
    block = _BLOCK.search(text)
    return block[1] if block else text
