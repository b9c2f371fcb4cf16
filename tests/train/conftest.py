"""Configs for every family of decoders, a tiny model with its tokenizer, tiny data, and a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from train.hf.save import save_params
from train.model import ModelConfig, abstract_params, init_params

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def _save_tokenizer(folder: Path) -> None:
    """Bytes as tokens: any text round-trips, and expectations can be counted by hand."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|start|>", "<|end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: at for at, token in enumerate([*specials, *letters])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder with random weights and a tokenizer of bytes."""

    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig.from_hf(LLAMA, "config.json")
    save_params(init_params(config, jax.random.key(0)), config, folder, "float32")
    _save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty sums; their answers differ in length, so that rows differ in target tokens."""
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    with file.open("w") as out:
        for n in range(40):
            question, answer = f"{n}+{n * n}=", str(n + n * n) * (1 + n % 3)
            turns = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            out.write(json.dumps({"messages": messages}) + "\n")
    return file


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenised data, outside the user's own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def write_config(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, cache: Path
) -> Callable[..., Path]:
    """Writes a config file for a run of six updates; keyword arguments lay sections over it."""

    def write(**sections: Any) -> Path:
        tree: dict[str, Any] = {
            "run": str(tmp_path / "run"),
            "cache": str(cache),
            "steps": 6,
            "model": {"path": str(tiny_model), "compute_dtype": "float32", "remat": "none"},
            "data": {"train": str(tiny_data), "max_length": 64, "eval_fraction": 0.2},
            "batch": {"size": 8},
            "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.01, "warmup_steps": 2},
            "evaluation": {"every": 3, "max_new_tokens": 4, "prompts": []},
            "checkpoint": {"every": 2, "keep": 4},
            "log_every": 1,  # Steps in flight on 8 devices of 2 cores can starve each other.
        }
        for key, value in sections.items():
            if isinstance(value, dict):
                tree[key] = tree.get(key, {}) | value
            else:
                tree[key] = value
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file

    return write


BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-no-groups": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-head-dim": {"model_type": "llama", "head_dim": 12},
    "llama-rope-5": {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "llama-rope-4": {"model_type": "llama", "rope_scaling": LLAMA3, "rope_theta": 500.0},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3-layers": {
        "model_type": "qwen3",
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.fixture(scope="session", params=FAMILIES)
def hf(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The config.json of one family or feature after the other."""
    return BASE | FAMILIES[request.param]


@pytest.fixture(scope="session")
def family() -> Callable[..., dict[str, Any]]:
    """The config.json of a named family or feature, with keys laid over it."""
    return lambda name, **keys: BASE | FAMILIES[name] | keys


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Any]:
    """Parameters of which none is zero: biases and norms matter too."""

    def make(config: ModelConfig, scale: float = 1.0) -> Any:
        draw = np.random.default_rng(0).normal

        def one(shape: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.asarray(scale * draw(0.0, 0.2, shape.shape), jnp.float32)

        return jax.tree.map(one, abstract_params(config))

    return make


@pytest.fixture
def saved(family: Any, random_params: Any, tmp_path: Path) -> tuple[Path, ModelConfig, Any]:
    """A folder with a model, its config and its parameters."""
    config = ModelConfig.from_hf(family("llama-biases"))
    params = random_params(config)
    folder = tmp_path / "model"
    folder.mkdir()
    save_params(params, config, folder, "float32")
    return folder, config, params


@pytest.fixture
def all_devices() -> list[jax.Device]:
    """The eight devices, for tests of meshes; other tests have two."""
    return jax.devices()


@pytest.fixture
def two_devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices, unless the test asks for all: whole runs then share their programs."""
    if "all_devices" not in request.fixturenames:
        two = jax.devices()[:2]
        monkeypatch.setattr(jax, "devices", lambda: two)
