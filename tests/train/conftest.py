"""A tiny model with its tokenizer, tiny data, and a config that trains it in seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

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
    from train.model import ModelConfig, init_params, save_params

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
            "evaluation": {"every": 3, "max_new_tokens": 4},
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
