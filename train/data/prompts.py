"""Prompts of the data, which show what a run learns where the config names none."""

from itertools import islice

import numpy as np

from .splits import Split

COUNT = 2
TRIED = 1000  # Examples that are looked at.


def first_prompts(split: Split, most: int) -> list[list[int]]:
    """The tokens before the first answer of the first examples that have any.

    A text that is learned as a whole has no prompt.

    Args:
      most: the most tokens that a prompt may have.
    """
    prompts: dict[tuple[int, ...], None] = {}
    for number in range(min(len(split.lengths), TRIED)):
        tokens, loss_mask = split.examples[number]
        length = int(np.argmax(loss_mask))
        if 1 < length <= most:
            prompts[tuple(tokens[:length].tolist())] = None
        if len(prompts) == COUNT:
            break
    return [list(prompt) for prompt in islice(prompts, COUNT)]
