"""Log-probabilities of continuations, in batches by length."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from ..generate import rounded_length, rows_per_batch
from ..model import ComputeOptions, ModelConfig, Params, hidden_states, logits
from ..sharding import constrain

TOKENS = 1024  # Tokens whose float32 logits [tokens, V] are in memory at a time.


class Request(NamedTuple):
    """What is to be scored: a continuation, as token ids, after a context of one token or more."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """The score of a continuation.

    Attributes:
      logprob: the natural logarithm of its probability, given the context.
      is_greedy: whether each of its tokens is the most probable one.
    """

    logprob: float
    is_greedy: bool


class _Row(NamedTuple):
    """The tokens that the model reads, and the requests that are answered by them."""

    tokens: tuple[int, ...]
    numbers: list[int]


def score(
    config: ModelConfig,
    params: Params,
    requests: Sequence[Request],
    options: ComputeOptions,
    *,
    batch_size: int,
    max_length: int,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Score]:
    """The scores of continuations.

    Requests that differ in their last token alone, as the letters of a multiple choice do, are
    computed once. A context that is too long loses its first tokens.

    Args:
      options: how the model computes; without rematerialisation, which has no use here.
      batch_size: rows that are computed together; on a mesh, those of data and fsdp share them.
      max_length: the most tokens that the model reads.
      progress: is called with the number of requests that were scored, after each batch.

    Raises:
      UserError: if a continuation is empty, longer than `max_length`, or has a token that the model
        does not have, or if a context is empty.
    """
    rows: dict[tuple[int, ...], _Row] = {}
    for number, request in enumerate(requests):
        tokens = _read_tokens(config, request, max_length)
        rows.setdefault(tokens, _Row(tokens, [])).numbers.append(number)
    ordered = sorted(rows.values(), key=lambda row: -len(row.tokens))
    num_rows = rows_per_batch(len(ordered), batch_size)
    scores: list[Score] = [Score(0.0, True)] * len(requests)
    for begin in range(0, len(ordered), num_rows):
        batch = ordered[begin : begin + num_rows]
        arrays = _arrays(batch, requests, num_rows)
        logprobs, greedy = map(np.asarray, _score(config, params, *arrays, options=options))
        for index, row in enumerate(batch):
            for other, number in enumerate(row.numbers):
                size = len(requests[number].continuation)
                of_request = np.s_[index, -size:, other]
                total = float(np.sum(logprobs[of_request], dtype=np.float64))
                scores[number] = Score(total, bool(np.all(greedy[of_request])))
        progress(sum(len(row.numbers) for row in batch))
    return scores


def _read_tokens(config: ModelConfig, request: Request, max_length: int) -> tuple[int, ...]:
    """The tokens that the model reads: all but the last."""
    tokens = [*request.context, *request.continuation]
    if not request.context or not request.continuation:
        raise UserError("a context and its continuation have at least one token each")
    if len(request.continuation) > max_length:
        raise UserError(
            f"a continuation has {len(request.continuation):,} tokens, more than the "
            f"{max_length:,} that the model reads (max_length)"
        )
    if max(tokens) >= config.vocab_size:
        raise UserError(
            f"a text has token {max(tokens)}, and the model's vocabulary ends at "
            f"{config.vocab_size - 1}; use the tokenizer that belongs to the model"
        )
    return tuple(tokens[-(max_length + 1) : -1])


def _arrays(
    batch: Sequence[_Row], requests: Sequence[Request], num_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [B, T], padded on the right; positions [B, C] and targets [B, C, R] of the ends.

    R requests share a row. A continuation of n tokens is in the last n of the C places.
    """
    sizes = [len(requests[number].continuation) for row in batch for number in row.numbers]
    count = 1 << (max(sizes) - 1).bit_length() if max(sizes) < 16 else rounded_length(max(sizes))
    width = rounded_length(max(len(row.tokens) for row in batch))
    count = min(count, width)
    shared = 1 << (max(len(row.numbers) for row in batch) - 1).bit_length()
    tokens = np.zeros((num_rows, width), np.int32)
    positions = np.zeros((num_rows, count), np.int32)
    targets = np.zeros((num_rows, count, shared), np.int32)
    for index, row in enumerate(batch):
        tokens[index, : len(row.tokens)] = row.tokens
        positions[index] = np.maximum(np.arange(-count, 0) + len(row.tokens), 0)
        for other, number in enumerate(row.numbers):
            continuation = requests[number].continuation
            targets[index, -len(continuation) :, other] = continuation
    return tokens, positions, targets


@partial(jax.jit, static_argnames=("config", "options"))
def _score(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    targets: jax.Array,
    options: ComputeOptions,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [B, C, R] of targets after positions [B, C]; which are the likeliest."""
    B, C, R = targets.shape
    hidden = hidden_states(config, params, constrain(tokens, "batch", None), options)
    hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)  # [B, C, D]

    def piece(given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, targets = given
        scores = logits(config, params, hidden, options.dtype)  # [B, c, V]
        total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        chosen = jnp.take_along_axis(scores, targets, axis=-1)
        best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return chosen - total, best[..., None] == targets

    size = max(1, TOKENS // B)
    pieces = -(-C // size)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, size * pieces - C), (0, 0)])
        return x.reshape(B, pieces, size, -1).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(B, pieces * size, R)[:, :C]

    if pieces == 1:
        results = piece((hidden, targets))
    else:
        results = jax.tree.map(join, jax.lax.map(piece, (cut(hidden), cut(targets))))
    # Each process reads all of it.
    logprobs, greedy = (constrain(x, None, None, None) for x in results)
    return logprobs, greedy
