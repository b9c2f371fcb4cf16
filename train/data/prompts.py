"""Prompts as tokens: a user's, and those of the data, which show what a run learns."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..hf.tokenizer import text_ids
from .pairs import SIDES, side_of
from .sources import open_source
from .splits import Split
from .template import Template

Prompt = str | Sequence[Mapping[str, Any]]  # A user turn, or the turns of a conversation.
COUNT = 2
TRIED = 1000  # Examples that are looked at.


def prompt_ids(tokenizer: Any, prompt: Prompt, now: datetime) -> list[int]:
    """The ids of a prompt, followed by the beginning of the assistant's turn.

    Without a chat template the prompt is plain text. With one, only the template adds BOS.

    Args:
      prompt: a user turn, or a conversation.
      now: what the template reads of the time.

    Raises:
      UserError: if the tokenizer has no chat template for a conversation.
    """
    if not tokenizer.chat_template:
        if not isinstance(prompt, str):
            raise UserError(
                "the model has no chat template for a prompt of turns; give prompts as text"
            )
        return text_ids(tokenizer, prompt)
    template = Template(tokenizer, tokenizer.get_chat_template(), "the chat template", now)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = template.text([dict(turn) for turn in turns], None, prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def read_prompts(path: str) -> list[tuple[dict[str, Any], Prompt]]:
    """The records of a file with their prompts: `prompt`, as text or turns, or `messages`.

    Raises:
      UserError: if it cannot be read, or a record has no prompt.
    """
    source = open_source(path)
    prompts = []
    for index in range(len(source)):
        try:
            record = source[index]
            keys = [key for key in ("prompt", "messages") if record.get(key)]
            if len(keys) != 1:
                raise UserError("a record has either 'prompt' or 'messages'; write one of them")
            prompts.append((record, _check_prompt(record[keys[0]])))
        except UserError as fault:
            raise UserError(f"{source.where(index)}: {fault}") from None
    return prompts


def _check_prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and "content" in turn
        for turn in prompt
    ):
        return prompt
    raise UserError("a prompt is text, or turns with 'role' and 'content'")


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
