from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.hf.save import save_params
from train.model import (
    ComputeOptions,
    ModelConfig,
    abstract_params,
    decode,
    forward,
    hidden_states,
    init_cache,
    init_params,
    logical_axes,
    logits,
    stacked_axes,
)
from train.sharding import RULES, batch_sharding, make_mesh, param_shardings

ROWS = np.random.default_rng(0).integers(0, 96, (8, 16), np.int32)


@pytest.fixture(scope="module")
def config(family: Callable[..., dict[str, Any]]) -> ModelConfig:
    """A config with windows on some layers, biases, and norms of queries and keys."""
    return ModelConfig.from_hf(family("qwen3-layers"))


@pytest.fixture(scope="module")
def params(config: ModelConfig, random_params: Any) -> Any:
    return random_params(config)


FORWARD = jax.jit(forward, static_argnums=(0, 3))
HIDDEN_STATES = jax.jit(hidden_states, static_argnums=0)
DECODE = jax.jit(decode, static_argnums=0)


def loss(params: Any, config: ModelConfig, tokens: Any, options: ComputeOptions) -> jax.Array:
    scores = forward(config, params, tokens, options)
    return -jnp.mean(jax.nn.log_softmax(scores)[..., 0])


GRAD = jax.jit(jax.grad(loss), static_argnames=("config", "options"))


@pytest.fixture(scope="module")
def compiled(config: ModelConfig) -> dict[str, Any]:
    """The compiled gradient for each kind of rematerialisation."""
    shapes = abstract_params(config)
    return {
        remat: GRAD.lower(shapes, config, ROWS, ComputeOptions(remat=remat)).compile()
        for remat in ("none", "dots", "full", "offload")
    }


def test_abstract_params_and_axes_fit_the_real_parameters(hf: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(hf)
    shapes, axes = abstract_params(config), logical_axes(config)
    real = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    assert jax.tree.structure(real) == jax.tree.structure(shapes)

    def check(path: Any, shape: Any, real: Any, names: tuple[str | None, ...]) -> None:
        assert (real.shape, real.dtype) == (shape.shape, jnp.float32)
        assert len(names) == len(shape.shape)
        assert set(names) <= {*RULES, "layers", None}
        assert stacked_axes(path) == (0 if "layers" in names else None)

    jax.tree_util.tree_map_with_path(check, shapes, real, axes)


def test_initial_weights_are_small_norms_one_and_biases_zero(config: ModelConfig) -> None:
    params = init_params(config, jax.random.key(0))
    layers = params["layers"]
    assert 0.018 < float(jnp.std(layers["mlp"]["up"]["weight"])) < 0.022
    assert jnp.all(layers["attention"]["q"]["bias"] == 0)
    assert jnp.all(params["norm"]["weight"] == 1)
    other = init_params(config, jax.random.key(1))
    assert not jnp.array_equal(params["embed"], other["embed"])


def test_a_token_changes_nothing_before_it(config: ModelConfig, params: Any) -> None:
    a = FORWARD(config, params, ROWS)
    b = FORWARD(config, params, np.where(np.arange(16) == 9, (ROWS + 1) % 96, ROWS))
    np.testing.assert_array_equal(a[:, :9], b[:, :9])
    assert not np.allclose(a[:, 9:], b[:, 9:])


def test_logits_of_pieces_are_the_pieces_of_logits(config: ModelConfig, params: Any) -> None:
    hidden = HIDDEN_STATES(config, params, ROWS)
    whole = FORWARD(config, params, ROWS)
    assert whole.dtype == jnp.float32
    for piece in (np.s_[:, 3:5], np.s_[:, -1]):
        np.testing.assert_allclose(logits(config, params, hidden[piece]), whole[piece], atol=1e-5)


def test_rematerialisation_changes_no_gradient(compiled: dict[str, Any], params: Any) -> None:
    plain, *others = (step(params, ROWS) for step in compiled.values())
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)


def test_the_more_is_recomputed_the_less_is_kept(compiled: dict[str, Any]) -> None:
    kept = {k: step.memory_analysis().temp_size_in_bytes for k, step in compiled.items()}
    assert kept["full"] < kept["dots"] < kept["none"]


def test_bfloat16_is_near_and_its_gradient_is_float32(config: ModelConfig, params: Any) -> None:
    whole, near = (
        FORWARD(config, params, ROWS, ComputeOptions(d)) for d in ("float32", "bfloat16")
    )
    assert near.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(near - whole))) < 0.1 * float(jnp.max(jnp.abs(whole)))
    options = ComputeOptions("bfloat16", "full")
    grads = jax.eval_shape(partial(GRAD, config=config, options=options), params, tokens=ROWS)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 2),
        (1, 2, 2, 2),
        (2, 1, 1, 4),
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
        pytest.param((1, 1, 1, 8), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_mesh_changes_no_gradient(
    shape: tuple[int, ...],
    config: ModelConfig,
    params: Any,
    compiled: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    alone = compiled["none"](params, ROWS)
    mesh = make_mesh(*shape)
    shardings = param_shardings(mesh, abstract_params(config), logical_axes(config))
    with jax.set_mesh(mesh):
        rows = jax.device_put(ROWS, batch_sharding(mesh))
        split = GRAD(jax.device_put(params, shardings), config, rows, ComputeOptions())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, split)
    # The partitioner logs this if it makes an activation whole on every device.
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("jitted", "length"), [(False, 8), pytest.param(True, 12, marks=pytest.mark.slow)]
)
def test_token_by_token_is_the_whole_text_at_once(
    family: Any, random_params: Any, jitted: bool, length: int
) -> None:
    config = ModelConfig.from_hf(family("qwen2-window"))
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, 96, (2, length)).astype(np.int32)
    with jax.disable_jit(not jitted):
        hidden, cache = DECODE(config, params, tokens[:, :5], init_cache(config, 2, length + 4))
        pieces = [hidden]
        for position in range(5, length):
            token = tokens[:, position : position + 1]
            hidden, cache = DECODE(config, params, token, cache)
            pieces.append(hidden)
        whole = HIDDEN_STATES(config, params, tokens)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-5)
    assert int(cache.length) == length


@pytest.mark.parametrize("jitted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_padding_on_the_left_changes_no_row(family: Any, random_params: Any, jitted: bool) -> None:
    config = ModelConfig.from_hf(family("mistral"))
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, 96, (3, 10)).astype(np.int32)
    start = jnp.array([0, 3, 7])
    with jax.disable_jit(not jitted):
        first, cache = DECODE(config, params, tokens[:, :8], init_cache(config, 3, 16), start=start)
        last, _ = DECODE(config, params, tokens[:, 8:], cache, start=start)
        together = jnp.concatenate([first, last], 1)
        assert jnp.all(jnp.isfinite(together))
        for row, begin in enumerate([0, 3, 7]):
            alone = HIDDEN_STATES(config, params, tokens[row : row + 1, begin:])
            np.testing.assert_allclose(together[row, begin:], alone[0], atol=1e-5)


def _greedy(config: ModelConfig, params: Any, tokens: Any, start: Any, n: int) -> np.ndarray:
    """n new tokens of each row."""
    cache = init_cache(config, len(tokens), tokens.shape[1] + n)
    new: list[np.ndarray] = []
    for _ in range(n):
        hidden, cache = DECODE(config, params, tokens, cache, start=start)
        new.append(np.argmax(logits(config, params, hidden[:, -1]), -1).astype(np.int32))
        tokens = new[-1][:, None]
    return np.stack(new, axis=1)


@pytest.mark.parametrize("name", ["llama-rope-5", "mistral", "qwen3-layers"])
def test_greedy_completions_equal_those_of_transformers(
    name: str, family: Any, random_params: Any, tmp_path: Any
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ModelConfig.from_hf(family(name))
    params = random_params(config, 3.0)
    save_params(params, config, tmp_path, "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = np.random.default_rng(1).integers(0, 96, (3, 8)).astype(np.int32)
    start = np.array([0, 2, 5])
    theirs = model.generate(
        torch.tensor(tokens, dtype=torch.int64),
        attention_mask=torch.tensor(np.arange(8) >= start[:, None]).long(),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    ours = _greedy(config, params, tokens, jnp.asarray(start), 12)
    assert len(np.unique(ours)) > 3
    np.testing.assert_array_equal(ours, theirs[:, 8:].numpy())
