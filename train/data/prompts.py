"""Prompts as tokens: a user's, and those of the data, which show what a run learns."""

from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from ..hf.tokenizer import text_ids
from .pairs import SIDES, side_of
from .splits import Split
from .template import Template

COUNT = 2
TRIED = 1000  # Examples that are looked at.


def prompt_ids(tokenizer: Any, prompt: str, now: datetime) -> list[int]:
    """The ids of a prompt as a user turn, followed by the beginning of the assistant's.

    Without a chat template the prompt is plain text. With one, only the template adds BOS.

    Args:
      now: what the template reads of the time.
    """
    if not tokenizer.chat_template:
        return text_ids(tokenizer, prompt)
    template = Template(tokenizer, tokenizer.get_chat_template(), "the chat template", now)
    text = template.text([{"role": "user", "content": prompt}], None, prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


class DataPrompt(NamedTuple):
    """A prompt of the data, as tokens.

    Attributes:
      answers: of a preference pair, the tokens that follow it, as chosen and rejected.
    """

    ids: list[int]
    answers: dict[str, list[int]]


def first_prompts(split: Split, most: int) -> list[DataPrompt]:
    """The tokens before the first answer of the first examples that have any.

    A text that is learned as a whole has no prompt.

    Args:
      most: the most tokens that a prompt may have.
    """
    prompts: dict[tuple[int, ...], DataPrompt] = {}
    for number in range(min(len(split.lengths), TRIED)):
        example, sides = split.examples[number], {}
        if example.tokens.ndim > 1:
            sides = {name: side_of(example, side) for side, name in enumerate(SIDES)}
            example = sides["chosen"]
        length = int(np.argmax(example.loss_mask))
        if 1 < length <= most:
            ids = example.tokens[:length].tolist()
            answers = {name: side.tokens[length:].tolist() for name, side in sides.items()}
            prompts.setdefault(tuple(ids), DataPrompt(ids, answers))
        if len(prompts) == COUNT:
            break
    return list(prompts.values())
