"""Exports: a whole model folder, or none."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.errors import UserError
from train.hf import save
from train.hf.export import export
from train.hf.load import load_params
from train.hf.tokenizer_files import COMPANIONS
from train.model import ModelConfig, load_model_config

Saved = tuple[Path, ModelConfig, Any]


def test_an_export_has_the_weights_and_the_bases_companions(saved: Saved, tmp_path: Path) -> None:
    base, config, params = saved
    others = ("LICENSE", "NOTICE.txt", "additional_chat_templates/tool_use.jinja")
    (base / "additional_chat_templates").mkdir()
    for name in (*COMPANIONS, *others, "README.md", "notes.txt"):
        (base / name).write_text(name)
    (base / "generation_config.json").write_text('{"eos_token_id": 3}')
    out = tmp_path / "parent" / "out"
    export(config, params, base, out, "float32", card="of the tuned model")
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    written = {"config.json", "model.safetensors", "README.md", "manifest.json"}
    assert names == {*written, *COMPANIONS, *others}
    for name in {*COMPANIONS, *others} - {"generation_config.json"}:
        assert (out / name).read_text() == name
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 3}
    assert (out / "README.md").read_text() == "of the tuned model"
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert load_model_config(out) == config


def test_an_earlier_export_is_replaced_only_when_asked(saved: Saved, tmp_path: Path) -> None:
    base, config, params = saved
    out = tmp_path / "out"
    export(config, params, base, out, "float32")
    (out / "vocab.json").write_text("of the earlier one")
    with pytest.raises(UserError, match="out is not empty"):
        export(config, params, base, out, "bfloat16")
    assert (out / "vocab.json").exists()
    export(config, params, base, out, "bfloat16", replace=True)
    assert (out / "vocab.json").read_text() == "of the earlier one", "it is not the export's"
    assert load_params(out, config).keys() == params.keys()


def test_nothing_stays_of_an_export_that_failed(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, config, params = saved
    before = sorted(tmp_path.rglob("*"))
    write_safetensors = save.write_safetensors

    def fill_the_disk(*arguments: Any) -> None:
        write_safetensors(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_safetensors", fill_the_disk)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
        export(config, params, base, tmp_path / "parent" / "out", "float32")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "parent"])
