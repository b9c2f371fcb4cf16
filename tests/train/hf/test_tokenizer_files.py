"""The files of a tokenizer are read alike by all versions of transformers, and by others."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from train.hf.tokenizer import load_tokenizer
from train.hf.tokenizer_files import (
    companions,
    copy_companions,
    is_companion,
    write_generation_config,
    write_tokenizer_files,
)

Json = dict[str, Any]
END = 2  # <|end|>
READER = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
turns = [{"role": "user", "content": "naïve\\n1"}, {"role": "assistant", "content": "b"}]
text = tokenizer.apply_chat_template(turns, tokenize=False)
ids = tokenizer(text, add_special_tokens=False).input_ids
print(json.dumps([text, ids, tokenizer.eos_token, tokenizer.pad_token]))
"""


@pytest.fixture
def written(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tokenizer's files of an export, from a base to which `change` does something."""

    def write(change: Callable[[Path], None], ends: tuple[int, ...] = (END,)) -> Path:
        base, out = tmp_path / "base", tmp_path / "out"
        base.mkdir()
        out.mkdir()
        copy_companions(tiny_model, base)
        change(base)
        copy_companions(base, out)
        write_tokenizer_files(out, load_tokenizer(base), ends)
        return out

    return write


def _json(folder: Path, name: str) -> Json:
    content: Json = json.loads((folder / name).read_text())
    return content


def _change_config(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(_json(folder, file.name) | keys))

    return change


def test_older_readers_find_class_template_and_special_tokens(
    written: Callable[..., Path], tiny_model: Path
) -> None:
    out = written(_change_config(extra_special_tokens=["<|start|>"]))
    assert _json(tiny_model, "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    config = _json(out, "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|start|>"]
    assert "extra_special_tokens" not in config
    assert config["chat_template"] == (out / "chat_template.jinja").read_text()
    assert _json(out, "special_tokens_map.json") == {
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": ["<|start|>"],
    }


def test_the_tokenizer_stays_the_same(written: Callable[..., Path], tiny_model: Path) -> None:
    ours, theirs = (
        AutoTokenizer.from_pretrained(written(lambda _: None)),
        load_tokenizer(tiny_model),
    )
    text = "naïve <|start|>x<|end|>\n"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template


@pytest.mark.slow
def test_transformers_4_reads_it(written: Callable[..., Path]) -> None:
    """GMT_JAX_TRANSFORMERS4 names interpreters that have it, separated by colons."""
    interpreters = os.environ.get("GMT_JAX_TRANSFORMERS4")
    if not interpreters:
        pytest.skip("GMT_JAX_TRANSFORMERS4 names no interpreter with transformers 4")
    out = written(_change_config(extra_special_tokens=["<|start|>"]))
    ours = AutoTokenizer.from_pretrained(out)
    turns = [{"role": "user", "content": "naïve\n1"}, {"role": "assistant", "content": "b"}]
    text = ours.apply_chat_template(turns, tokenize=False)
    expected = [text, ours(text, add_special_tokens=False).input_ids, "<|end|>", "<|pad|>"]
    for python in interpreters.split(os.pathsep):
        command = [python, "-c", READER, str(out)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(done.stdout) == expected


def test_templates_beside_the_template_are_kept(written: Callable[..., Path]) -> None:
    def add_template(folder: Path) -> None:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")

    out = written(add_template)
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "with tools"
    templates = _json(out, "tokenizer_config.json")["chat_template"]
    assert {template["name"] for template in templates} == {"default", "tool_use"}
    assert AutoTokenizer.from_pretrained(out).get_chat_template(tools=[{}]) == "with tools"


def test_the_template_of_the_training_replaces_all_of_the_bases(
    tiny_model: Path, tmp_path: Path
) -> None:
    copy_companions(tiny_model, tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("the base's")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "the base\'s"}')
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = "mine"
    write_tokenizer_files(tmp_path, tokenizer, (END,))
    assert (tmp_path / "chat_template.jinja").read_text() == "mine"
    assert _json(tmp_path, "chat_template.json") == {"chat_template": "mine"}
    assert _json(tmp_path, "tokenizer_config.json")["chat_template"] == "mine"
    assert not (tmp_path / "additional_chat_templates").exists()


@pytest.mark.parametrize("tag", ["{% {} %}", "{%- {} -%}", "{%-{}%}", "{%+ {} -%}"])
def test_generation_markers_become_what_all_readers_know(
    tiny_model: Path, tmp_path: Path, tag: str
) -> None:
    begin, end = (tag.replace("{}", name) for name in ("generation", "endgeneration"))
    copy_companions(tiny_model, tmp_path)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}\n  <|start|>{{ m['role'] }} \n  "
        + begin
        + " \n {{ m['content'] }} \n"
        + end
        + " \n<|end|>{% endfor %}"
    )
    write_tokenizer_files(tmp_path, tokenizer, (END,))
    assert "generation" not in (tmp_path / "chat_template.jinja").read_text()
    assert "generation" not in (tmp_path / "tokenizer_config.json").read_text()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    texts = [
        each.apply_chat_template(turns, tokenize=False)
        for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path))
    ]
    assert texts[0] == texts[1]


def test_a_templates_name_leads_nowhere_else(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    copy_companions(tiny_model, out)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = {"default": "a", "../../elsewhere": "b"}
    write_tokenizer_files(out, tokenizer, (END,))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "additional_chat_templates").exists()


@pytest.mark.parametrize(
    ("template", "keys", "eos"),
    [
        ("{{ messages }}<|start|>", {}, "<|start|>"),
        ("{{ messages }}<|start|>", {"eos_token": {"content": "<|end|>"}}, "<|start|>"),
        ("{{ messages }}{{ eos_token }}", {}, "<|end|>"),
        ("{{ messages }}<|start|>", {"add_eos_token": True}, "<|end|>"),
    ],
    ids=["text", "object", "a template that writes it", "a tokenizer that writes it"],
)
def test_the_end_of_a_turn_is_the_tokenizers_end_where_that_changes_no_text(
    tiny_model: Path, tmp_path: Path, template: str, keys: Json, eos: str
) -> None:
    copy_companions(tiny_model, tmp_path)
    _change_config(**keys)(tmp_path)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template
    write_tokenizer_files(tmp_path, tokenizer, (1, END))
    named = _json(tmp_path, "tokenizer_config.json")["eos_token"]
    assert (named["content"] if isinstance(named, dict) else named) == eos
    assert _json(tmp_path, "special_tokens_map.json")["eos_token"] == eos


@pytest.mark.parametrize(
    ("base", "config", "ends", "content"),
    [
        (None, {"bos_token_id": 1}, (5, 6), {"bos_token_id": 1, "eos_token_id": [5, 6]}),
        ({"top_p": 0.9, "eos_token_id": 1}, {}, (5,), {"top_p": 0.9, "eos_token_id": 5}),
        ({"_from_model_config": True}, {}, (5,), {"eos_token_id": 5}),
        ({"eos_token_id": 1}, {}, (), {"eos_token_id": 1}),
        (None, {}, (), None),
    ],
)
def test_a_generation_config_names_all_ends(
    tmp_path: Path, base: Json | None, config: Json, ends: tuple[int, ...], content: Json | None
) -> None:
    file = tmp_path / "generation_config.json"
    if base is not None:
        file.write_text(json.dumps(base))
    write_generation_config(tmp_path, config, ends)
    assert (json.loads(file.read_text()) if file.exists() else None) == content


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        ("tokenizer.json", True),
        ("README.md", True),
        ("LICENSE", True),
        ("LICENSE.txt", True),
        ("USE_POLICY.md", True),
        ("additional_chat_templates/tool_use.jinja", True),
        ("additional_chat_templates/../x.jinja", False),
        ("../tokenizer.json", False),
        ("LICENSE/../../x", False),
        ("model.safetensors", False),
        ("notes.txt", False),
    ],
)
def test_the_files_that_go_with_a_models_weights(tmp_path: Path, name: str, goes: bool) -> None:
    assert is_companion(name) is goes
    if ".." not in name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
        assert companions(tmp_path) == [name] * goes
