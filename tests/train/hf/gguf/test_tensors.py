"""The tensors of a GGUF file arrive under their Hugging Face names, in their order."""

from typing import Any

import numpy as np
import pytest

ARCHITECTURES = ("llama", "qwen2", "qwen3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_comes_back_bit_for_bit(gguf: Any, architecture: str, tied: bool) -> None:
    original = gguf.state_dict(architecture, tied)
    gguf.imported(architecture, weights=original)
    tensors = gguf.tensors()
    assert tensors.keys() == original.keys()
    for name, expected in original.items():
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)
    assert gguf.json("config.json")["tie_word_embeddings"] is tied


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_computes_the_original_logits(gguf: Any, architecture: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    original = gguf.state_dict(architecture, tied=False)
    folder = gguf.imported(architecture, weights=original)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(gguf.TOKENS),
        hidden_size=gguf.EMBED,
        intermediate_size=gguf.FFN,
        num_hidden_layers=gguf.LAYERS,
        num_attention_heads=gguf.HEADS,
        num_key_value_heads=gguf.KV_HEADS,
        head_dim=gguf.head_dim(architecture),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=False,
    )
    reference = AutoModelForCausalLM.from_config(config).eval()
    reference.load_state_dict({name: torch.tensor(w) for name, w in original.items()})
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(20)[None] * 7
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, reference(tokens).logits)


def test_missing_misshapen_and_unknown_tensors_come_in_one_error(gguf: Any) -> None:
    weights = gguf.state_dict("llama")
    del weights["model.norm.weight"]
    weights["model.layers.1.mlp.up_proj.weight"] = np.zeros((gguf.FFN, gguf.EMBED + 1), np.float32)
    extra = {"blk.0.attn_q.bias": np.zeros(gguf.EMBED, np.float32)}
    source = gguf.write(weights=weights, extra=extra)
    gguf.refused(
        source,
        "output_norm.weight is missing",
        "blk.1.ffn_up.weight is (64, 33), expected (64, 32)",
        "blk.0.attn_q.bias is not part of a llama model",
    )
