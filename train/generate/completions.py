"""Completes prompts in batches by length, up to a stop token or a stop string."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from ..errors import UserError
from ..model import ModelConfig, Params, unstack
from .batches import rounded_length, rows_per_batch
from .programs import CHUNK, advance, prefill
from .sampling import Sampling

BATCH_SIZE = 16  # Prompts that are completed together.
# A scan over layers copies each layer's weights on a CPU. One layer after the other takes longer to
# compile, and is used for this many new tokens or more.
UNSTACK_FROM = 1024


@dataclass(frozen=True)
class _Batch:
    """Prompts of similar length as arrays.

    Attributes:
      numbers: which of all prompts the rows are; -1 for rows without one.
      tokens: int32 [B, T], padded on the left, so that all rows go on at one position.
      lengths: int32 [B].
    """

    numbers: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


def complete(
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    dtype: str = "float32",
    *,
    stop_strings: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """The text that follows each prompt, up to the first stop token or stop string.

    Args:
      tokenizer: as from `load_tokenizer`.
      prompts: token ids.
      stop_ids: as from `find_ends`.
      dtype: of activations and the cache.
      stop_strings: end a completion, and are no part of it.
      batch_size: prompts that are completed together.
      progress: is called with the number of prompts that were completed, after each batch.

    Raises:
      UserError: as `generate` does.
    """
    strings = [string for string in stop_strings if string]

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def has_stop(ids: Sequence[int]) -> bool:
        text = decode(ids)
        return any(string in text for string in strings)

    completions = generate(
        config,
        params,
        prompts,
        sampling,
        stop_ids,
        dtype,
        is_done=has_stop if strings else None,
        batch_size=batch_size,
        progress=progress,
    )
    return [cut(decode(ids), strings) for ids in completions]


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first of the strings.

    >>> cut("one. two; three", [";", "."])
    'one'
    """
    found = [text.find(string) for string in stop_strings if string in text]
    return text[: min(found)] if found else text


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    dtype: str = "float32",
    *,
    is_done: Callable[[Sequence[int]], bool] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] = lambda _: None,
) -> list[list[int]]:
    """The new tokens of each prompt, up to and without the first stop token.

    Prompts are sorted by length and completed `batch_size` at a time, the longest first. On a
    mesh, rows are split over data and fsdp, and heads over tensor.

    Args:
      is_done: whether new tokens need no more of them; it is asked every `CHUNK` tokens, so a few
        more may be returned.
      progress: is called with the number of prompts that were completed, after each batch.

    Raises:
      UserError: if a prompt is empty, has a token that the model does not have, or is too long.
    """
    check_prompts(config, prompts, sampling)
    stops = np.asarray(stop_ids, np.int32)
    num_tokens = len(prompts) * sampling.max_new_tokens
    stacked = jax.default_backend() != "cpu" or num_tokens < UNSTACK_FROM
    layers = params["layers"] if stacked else jax.jit(unstack)(params["layers"])
    # What differs between calls of one program is not part of the program.
    kind = replace(sampling, max_new_tokens=1, seed=0)
    step = partial(advance, config, params | {"layers": layers}, sampling=kind, dtype=dtype)
    completions: list[list[int]] = [[] for _ in prompts]
    for batch in _batches(prompts, batch_size):
        state = prefill(
            config,
            params,
            batch.tokens,
            batch.lengths,
            batch.numbers,
            np.int32(sampling.seed),
            slots=rounded_length(batch.tokens.shape[1] + sampling.max_new_tokens),
            sampling=kind,
            dtype=dtype,
            stacked=stacked,
        )
        ended = batch.numbers < 0
        for begin in range(0, sampling.max_new_tokens, CHUNK):
            steps = np.int32(min(CHUNK, sampling.max_new_tokens - begin))
            state, tokens = step(state, ended, stops, steps)
            for row in np.flatnonzero(~ended):
                new = completions[batch.numbers[row]]
                new += np.asarray(tokens)[row, :steps].tolist()
                ended[row] = _cut_at_stop(new, begin, stop_ids) or (is_done and is_done(new))
            if np.all(ended):
                break
        progress(int(np.sum(batch.numbers >= 0)))
    return completions


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> None:
    """Checks that the model can complete every prompt.

    Raises:
      UserError: if one is empty, has a token without a row in the embeddings, or is too long for
        the model's positions.
    """
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) == 0:
            raise UserError(f"a prompt has no tokens (number {number}); give at least one word")
        if max(prompt) >= config.vocab_size:
            raise UserError(
                f"prompt {number} has token {max(prompt)}, and the model's vocabulary ends at "
                f"{config.vocab_size - 1}; use the tokenizer that belongs to the model"
            )
        length = len(prompt) + sampling.max_new_tokens
        if length > config.max_position_embeddings:
            raise UserError(
                f"prompt {number} has {len(prompt):,} tokens, with {sampling.max_new_tokens:,} new "
                f"ones more than the model's {config.max_position_embeddings:,} positions; "
                "shorten it, or lower max_new_tokens (--max-new-tokens)"
            )


def _batches(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[_Batch]:
    """The prompts in batches of equal numbers of rows, the longest first."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    num_rows = rows_per_batch(len(prompts), batch_size)
    for begin in range(0, len(order), num_rows):
        rows = order[begin : begin + num_rows]
        width = rounded_length(len(prompts[rows[0]]))
        numbers = np.full(num_rows, -1, np.int32)
        numbers[: len(rows)] = rows
        lengths = np.ones(num_rows, np.int32)  # A row without a prompt has one token, of no use.
        tokens = np.zeros((num_rows, width), np.int32)
        for row, number in enumerate(rows):
            lengths[row] = len(prompts[number])
            tokens[row, width - lengths[row] :] = prompts[number]
        yield _Batch(numbers, tokens, lengths)


def _cut_at_stop(new: list[int], begin: int, stop_ids: Sequence[int]) -> bool:
    """Cuts new tokens before the first stop token from `begin` on; returns whether there is one."""
    for index in range(begin, len(new)):
        if new[index] in stop_ids:
            del new[index:]
            return True
    return False
