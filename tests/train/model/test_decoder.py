"""Every family of decoders: transformers' logits, and packed rows.

Without jit the operations have the same few shapes for all families, so they are compiled once,
where jit compiles each family's program: those cases are slow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.data.batches import Batches
from train.data.packing import best_fit
from train.data.tokenize import Example
from train.hf.load import load_params
from train.hf.save import save_params
from train.model import Documents, ModelConfig, forward, load_model_config
from train.objective.sft import Sft

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 24)).astype(np.int32)
LENGTHS = (7, 3, 11, 2, 5, 9, 2, 16)  # Some above and some below every window.
ROWS = ((0, 5), (2, 4), (3, 1, 6), (7,))  # The documents of each packed row of 16 tokens.
JITTED = pytest.mark.parametrize(
    "jitted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "jitted"]
)
FORWARD = jax.jit(forward, static_argnums=0)
LOSS = jax.jit(lambda config, *inputs: Sft(config)(*inputs), static_argnums=0)


@pytest.fixture(scope="session")
def reference(hf: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a PyTorch model, and the model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**hf)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("reference")
    model.save_pretrained(folder)
    return folder, model


def _torch_logits(model: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(TOKENS, dtype=torch.int64)).logits.numpy()
    return logits


@JITTED
def test_logits_equal_those_of_transformers(reference: tuple[Path, Any], jitted: bool) -> None:
    folder, model = reference
    config = load_model_config(folder)
    params = load_params(folder, config)
    with jax.disable_jit(not jitted):
        logits = FORWARD(config, params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, _torch_logits(model), atol=1e-4)


def test_transformers_loads_what_we_save(reference: tuple[Path, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, model = reference
    config = load_model_config(folder)
    save_params(load_params(folder, config), config, tmp_path, "float32", max_file_bytes=20_000)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert not any(info.values())
    np.testing.assert_array_equal(_torch_logits(again), _torch_logits(model))


def _batch(rows: Sequence[Sequence[int]]) -> dict[str, jax.Array]:
    """Documents in rows of 16 tokens; each has the same tokens and loss mask wherever it is."""
    shape = (len(rows), 16)
    tokens, targets, segments, positions = np.zeros((4, *shape), np.int32)
    weights = np.zeros(shape, np.float32)
    for row, documents in enumerate(rows):
        end = 0
        for number, document in enumerate(documents, 1):
            draw, length = np.random.default_rng(document), LENGTHS[document]
            begin, end = end, end + length
            tokens[row, begin:end] = draw.integers(0, 96, length)
            targets[row, begin : end - 1] = tokens[row, begin + 1 : end]
            weights[row, begin : end - 1] = draw.random(length - 1) < 0.7
            segments[row, begin:end] = number
            positions[row, begin:end] = np.arange(length)
    arrays = {"tokens": tokens, "targets": targets, "weights": weights}
    arrays |= {"segment_ids": segments, "positions": positions}
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def _losses(logits: jax.Array, batch: dict[str, jax.Array]) -> np.ndarray:
    """The weighted loss of each token, [B, T]."""
    scores = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return np.asarray(scores * batch["weights"])


@JITTED
def test_each_document_of_a_packed_row_has_the_logits_and_losses_that_it_has_alone(
    hf: dict[str, Any], random_params: Any, jitted: bool
) -> None:
    config = ModelConfig.from_hf(hf)
    params = random_params(config)
    packed, alone = _batch(ROWS), _batch([[document] for document in range(len(LENGTHS))])
    documents = Documents(packed["segment_ids"], packed["positions"])
    del alone["segment_ids"], alone["positions"]
    with jax.disable_jit(not jitted):
        together = FORWARD(config, params, packed["tokens"], documents=documents)
        apart = FORWARD(config, params, alone["tokens"])
        sums = [LOSS(config, params, batch) for batch in (packed, alone)]
    losses, expected_losses = _losses(together, packed), _losses(apart, alone)
    for row, members in enumerate(ROWS):
        end = 0
        for document in members:
            length = LENGTHS[document]
            begin, end = end, end + length
            for packed_values, values in ((together, apart), (losses, expected_losses)):
                expected = values[document, :length]
                np.testing.assert_allclose(packed_values[row, begin:end], expected, atol=1e-5)
    assert float(sums[0][1]) == float(sums[1][1]) > 0
    assert float(sums[0][0]) == pytest.approx(float(sums[1][0]), rel=1e-6)


def test_the_program_packs_these_documents_into_these_rows() -> None:
    examples = []
    for document, length in enumerate(LENGTHS):
        draw = np.random.default_rng(document)
        tokens = draw.integers(0, 96, length).astype(np.int32)
        # The loss mask is of a token itself, and its weight stands where it is the target.
        loss_mask = np.concatenate([[False], draw.random(length - 1) < 0.7])
        examples.append(Example(tokens, loss_mask))
    lengths = np.array(LENGTHS)
    rows = best_fit(lengths, 16)
    batches = Batches(
        examples,
        rows,
        lengths,
        batch_size=4,
        max_length=16,
        seed=0,
        packing="packed",
    )
    assert batches.num_eval_batches == 1
    members = np.split(rows.members, rows.offsets[1:-1])
    assert {frozenset(row.tolist()) for row in members} == set(map(frozenset, ROWS))
    packed, expected = batches.eval_batch(0), _batch([row.tolist() for row in members])
    for name, array in expected.items():
        np.testing.assert_array_equal(packed[name], array)


def test_without_segments_documents_would_see_each_other(family: Any, random_params: Any) -> None:
    config = ModelConfig.from_hf(family("llama"))
    params, packed = random_params(config), _batch(ROWS)
    documents = Documents(packed["segment_ids"], packed["positions"])
    with jax.disable_jit():
        mixed = forward(config, params, packed["tokens"])
        apart = forward(config, params, packed["tokens"], documents=documents)
    second = packed["segment_ids"] == 2
    assert not np.allclose(mixed[second], apart[second], atol=1e-2)
