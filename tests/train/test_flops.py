"""The count of arithmetic, against one by hand and against XLA's of a program without loops."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from train.flops import GIB, find_chip, flops_per_token, peak_tokens_per_s
from train.model import ModelConfig, forward, init_params

HF: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def test_it_is_the_count_by_hand() -> None:
    q, kv, out, ffn = 16 * 32, 2 * 16 * 16, 32 * 16, 3 * 16 * 40
    weights = 3 * (q + kv + out + ffn) + 100 * 16
    scores = 3 * 32 * (1 + 2 + 3 + 4 + 5) / 5  # layers, H · head_dim, keys that a token sees
    expected = 6 * weights + 12 * scores
    assert flops_per_token(ModelConfig.from_hf(HF), 5) == pytest.approx(expected)
    untied = ModelConfig.from_hf(HF | {"tie_word_embeddings": False})
    assert flops_per_token(untied, 5) == pytest.approx(expected)


def test_a_window_lowers_the_count() -> None:
    whole, slid = (
        ModelConfig.from_hf(HF | {"model_type": "mistral", "sliding_window": window})
        for window in (None, 2)
    )
    saved = flops_per_token(whole, 5) - flops_per_token(slid, 5)
    assert saved == pytest.approx(12 * 3 * 32 * (15 - 9) / 5)


def test_a_forward_pass_is_a_third_of_what_xla_counts() -> None:
    """The model has one layer, as XLA counts a loop once; XLA counts masked scores too."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 512}
    config = ModelConfig.from_hf(HF | wide | {"num_hidden_layers": 1})
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    program = jax.jit(lambda p, t: forward(config, p, t)).lower(params, tokens)
    counted = program.cost_analysis()["flops"]
    assert flops_per_token(config, 64) * 2 * 64 / 3 == pytest.approx(counted, rel=0.05)


class _Device:
    def __init__(self, device_kind: str) -> None:
        self.device_kind = device_kind


def test_a_peak_is_that_of_all_devices_where_it_is_known() -> None:
    model = ModelConfig.from_hf(HF)
    of_one: Any = _Device("TPU v5 lite")
    peak = peak_tokens_per_s(model, 64, of_one, 8)
    assert peak == pytest.approx(8 * 197e12 / flops_per_token(model, 64))
    assert peak_tokens_per_s(model, 64, jax.devices("cpu")[0], 8) is None


@pytest.mark.parametrize(
    ("kind", "gib", "teraflops"),
    [
        ("TPU v5 lite", 16, 197),
        ("TPU v5", 95, 459),
        ("TPU v5p", 95, 459),
        ("TPU v6 lite", 32, 918),
        ("TPU v4", 32, 275),
    ],
)
def test_tpus(kind: str, gib: int, teraflops: float) -> None:
    chip = find_chip(kind)
    assert chip is not None
    assert (chip.memory, chip.bf16_flops) == (gib * GIB, teraflops * 1e12)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
    ],
)
def test_gpus(kind: str, teraflops: float) -> None:
    chip = find_chip(kind)
    assert chip is not None
    assert chip.bf16_flops == teraflops * 1e12


def test_what_is_not_listed() -> None:
    assert find_chip("cpu") is None
