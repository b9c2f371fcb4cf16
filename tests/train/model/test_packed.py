"""Packed rows: no document sees another, and each is where it would be alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.batches import Batches
from train.data.packing import best_fit, one_per_row
from train.data.tokenize import Example
from train.model import ComputeOptions, Documents, ModelConfig, forward
from train.objective.sft import sft_loss

LENGTHS = np.array([7, 3, 11, 2, 5, 9, 1 + 1, 16])  # Longer than every window, and shorter.
FORWARD = jax.jit(forward, static_argnums=0)
LOSS = jax.jit(sft_loss, static_argnums=(0, 3))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    draw = np.random.default_rng(0)
    return [
        Example(draw.integers(0, 96, n).astype(np.int32), draw.random(n) < 0.7) for n in LENGTHS
    ]


def _arrays(examples: list[Example], packing: Any, size: int) -> dict[str, np.ndarray]:
    rows = best_fit(LENGTHS, 16) if packing == "packed" else one_per_row(len(LENGTHS))
    batches = Batches(
        examples, rows, LENGTHS, batch_size=size, max_length=16, seed=0, packing=packing
    )
    assert batches.num_eval_batches == 1
    return batches.eval_batch(0)


def test_each_documents_logits_and_losses_are_those_of_it_alone(
    hf: dict[str, Any], random_params: Any, examples: list[Example]
) -> None:
    config = ModelConfig.from_hf(hf)
    params = random_params(config)
    packed, alone = _arrays(examples, "packed", 4), _arrays(examples, "none", 8)
    assert len({tuple(row) for row in packed["segment_ids"]}) > 1
    documents = Documents(jnp.asarray(packed["segment_ids"]), jnp.asarray(packed["positions"]))
    scores = [
        FORWARD(config, params, packed["tokens"], documents=documents),
        FORWARD(config, params, alone["tokens"]),
    ]
    losses = [
        np.asarray(-jnp.take_along_axis(jax.nn.log_softmax(s), b["targets"][..., None], -1))[..., 0]
        * b["weights"]
        for s, b in zip(scores, (packed, alone), strict=True)
    ]
    rows = best_fit(LENGTHS, 16)
    for row, (begin, end) in enumerate(zip(rows.offsets[:-1], rows.offsets[1:], strict=True)):
        at = 0
        for document in rows.members[begin:end]:
            n = LENGTHS[document]
            piece = slice(at, at + n)
            np.testing.assert_array_equal(packed["tokens"][row, piece], examples[document].tokens)
            np.testing.assert_allclose(scores[0][row, piece], scores[1][document, :n], atol=1e-5)
            np.testing.assert_allclose(losses[0][row, piece], losses[1][document, :n], atol=1e-5)
            at += n
    sums = [LOSS(config, params, b, ComputeOptions()) for b in (packed, alone)]
    assert float(sums[0][1]) == float(sums[1][1]) > 0
    assert float(sums[0][0]) == pytest.approx(float(sums[1][0]), rel=1e-6)


def test_without_segments_documents_would_run_into_each_other(
    family: Any, random_params: Any, examples: list[Example]
) -> None:
    config = ModelConfig.from_hf(family("llama"))
    packed = _arrays(examples, "packed", 4)
    params = random_params(config)
    together = FORWARD(config, params, packed["tokens"])
    documents = Documents(jnp.asarray(packed["segment_ids"]), jnp.asarray(packed["positions"]))
    apart = FORWARD(config, params, packed["tokens"], documents=documents)
    second = packed["segment_ids"] == 2
    assert not np.allclose(together[second], apart[second], atol=1e-2)
