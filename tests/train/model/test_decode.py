from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.hf.save import save_params
from train.model import ModelConfig, decode, hidden_states, init_cache, logits

STEP = jax.jit(decode, static_argnums=0)
WHOLE = jax.jit(hidden_states, static_argnums=0)


def test_token_by_token_is_the_whole_text_at_once(family: Any, random_params: Any) -> None:
    config = ModelConfig.from_hf(family("qwen2-window"))
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 12))
    hidden, cache = STEP(config, params, tokens[:, :5], init_cache(config, 2, 16))
    pieces = [hidden]
    for at in range(5, 12):
        hidden, cache = STEP(config, params, tokens[:, at : at + 1], cache)
        pieces.append(hidden)
    whole = WHOLE(config, params, tokens)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-5)
    assert int(cache.length) == 12


def test_padding_on_the_left_changes_no_row(family: Any, random_params: Any) -> None:
    config = ModelConfig.from_hf(family("mistral"))
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, 96, (3, 10))
    start = jnp.array([0, 3, 7])
    first, cache = STEP(config, params, tokens[:, :8], init_cache(config, 3, 16), start=start)
    last, _ = STEP(config, params, tokens[:, 8:], cache, start=start)
    together = jnp.concatenate([first, last], 1)
    assert jnp.all(jnp.isfinite(together))
    for row, begin in enumerate([0, 3, 7]):
        alone = WHOLE(config, params, tokens[row : row + 1, begin:])
        np.testing.assert_allclose(together[row, begin:], alone[0], atol=1e-5)


@partial(jax.jit, static_argnums=(0, 4))
def greedy(config: ModelConfig, params: Any, tokens: Any, start: Any, n: int) -> jax.Array:
    """n new tokens of each row."""

    def advance(carry: Any, _: None) -> Any:
        token, cache = carry
        hidden, cache = decode(config, params, token[:, None], cache, start=start)
        return (choose(hidden), cache), token

    def choose(hidden: jax.Array) -> jax.Array:
        return jnp.argmax(logits(config, params, hidden[:, -1]), -1)

    cache = init_cache(config, *tokens.shape[:1], tokens.shape[1] + n)
    hidden, cache = decode(config, params, tokens, cache, start=start)
    return jax.lax.scan(advance, (choose(hidden), cache), length=n)[1].T


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
    tokens = np.random.default_rng(1).integers(0, 96, (3, 8))
    start = np.array([0, 2, 5])
    theirs = model.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(np.arange(8) >= start[:, None]).long(),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    ours = greedy(config, params, tokens, jnp.asarray(start), 12)
    assert len(np.unique(ours)) > 3
    np.testing.assert_array_equal(ours, theirs[:, 8:].numpy())
