"""Deltas of model folders: the tuned folder comes back, and nothing else is written."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from train.__main__ import main
from train.hf.save import save_params
from train.model import ModelConfig, init_params

Capture = pytest.CaptureFixture[str]
Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors], None]
Rewrite = Callable[[Path, Change], None]
Copy = Callable[[Path, Path], Path]
WEIGHTS = "model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def run(*argv: object) -> None:
    assert main(["delta", *map(str, argv)]) == 0


def test_the_tuned_folder_comes_back_bit_for_bit(
    base: Path, tuned: Path, delta: Path, tmp_path: Path
) -> None:
    run("apply", "--base", base, "--delta", delta, "--out", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tuned)


def test_nan_payloads_and_signed_zeros_come_back(
    base: Path, tmp_path: Path, rewrite: Rewrite, copy_folder: Copy
) -> None:
    tuned = copy_folder(base, tmp_path / "tuned")

    def odd(tensors: Tensors) -> None:
        row = tensors["model.norm.weight"]
        row.view("u2")[:5] = [0x7FC1, 0xFFC2, 0x8000, 0x0000, 0x0001]

    rewrite(tuned, odd)
    run("extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "odd.delta")
    run("apply", "--base", base, "--delta", tmp_path / "odd.delta", "--out", tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tuned / WEIGHTS).read_bytes()


def test_the_applied_folder_loads_in_transformers(base: Path, delta: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run("apply", "--base", base, "--delta", delta, "--out", tmp_path / "again")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("hello").input_ids


def test_at_five_per_cent_the_file_is_below_a_tenth_of_the_model(
    tmp_path: Path, rewrite: Rewrite, sparsely: Change
) -> None:
    config = ModelConfig.from_hf({**BIG})
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        save_params(init_params(config, jax.random.key(0)), config, tmp_path / name)
    rewrite(tmp_path / "tuned", sparsely)
    out = tmp_path / "some.delta"
    run("extract", "--base", tmp_path / "base", "--tuned", tmp_path / "tuned", "--out", out)
    assert out.stat().st_size < 0.1 * (tmp_path / "base" / WEIGHTS).stat().st_size


BIG = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def test_small_files_are_the_tuned_models(base: Path, tuned: Path, tmp_path: Path) -> None:
    """A changed one is carried, a new one too, and one that was removed does not come back."""
    (base / "generation_config.json").write_text("{}")
    (tuned / "chat_template.jinja").write_text("{{ messages }}")
    (tuned / "vocab.json").write_text("{}")
    (tuned / "README.md").write_text("a card")
    (tuned / "additional_chat_templates").mkdir()
    (tuned / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    run("extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "some.delta")
    run("apply", "--base", base, "--delta", tmp_path / "some.delta", "--out", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tuned)


def cut(folder: Path, pattern: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: pattern.format(1 + at % 2) for at, name in enumerate(sorted(tensors))}
    for part in set(places.values()):
        save_file({n: tensors[n] for n in tensors if places[n] == part}, folder / part)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_output_is_cut_as_the_base_is(
    base: Path, tuned: Path, delta: Path, tmp_path: Path
) -> None:
    """And a delta fits its base however that is cut."""
    whole = load_file(tuned / WEIGHTS)
    cut(base, "model-0000{}-of-00002.safetensors")
    run("apply", "--base", base, "--delta", delta, "--out", tmp_path / "again")
    again = contents(tmp_path / "again")
    index = "model.safetensors.index.json"
    assert again[index] == (base / index).read_bytes()
    assert again.keys() == contents(base).keys()
    found: Tensors = {}
    for part in (tmp_path / "again").glob("*.safetensors"):
        with safe_open(base / part.name, "numpy") as same:
            assert load_file(part).keys() == set(same.keys())
        found |= load_file(part)
    assert {name: x.tobytes() for name, x in found.items()} == {
        name: x.tobytes() for name, x in whole.items()
    }


def test_info_says_what_there_is(base: Path, tuned: Path, delta: Path, capsys: Capture) -> None:
    pairs = [(x, load_file(tuned / WEIGHTS)[name]) for name, x in load_file(base / WEIGHTS).items()]
    entries = sum(int((a.view("u2") != b.view("u2")).sum()) for a, b in pairs)
    tensors = sum(a.tobytes() != b.tobytes() for a, b in pairs)
    capsys.readouterr()
    run("info", delta)
    out = capsys.readouterr().out
    with safe_open(delta, "numpy") as opened:
        said = opened.metadata()
    assert f"tensors changed {tensors} of 20" in out
    assert f"entries changed {entries:,} of {sum(a.size for a, _ in pairs):,} (5." in out
    for part in (said["base"], said["tuned"], "BF16", "files carried   none"):
        assert part in out


def test_the_metadata_say_version_density_type_and_shapes(delta: Path, base: Path) -> None:
    with safe_open(delta, "numpy") as opened:
        said = opened.metadata()
    assert (said["format"], said["version"], said["dtype"]) == ("gmt-jax.delta", "1", "BF16")
    assert 0.04 < float(said["density"]) < 0.06
    shapes = {n: t["shape"] for n, t in json.loads(said["contents"])["tensors"].items()}
    assert shapes == {name: list(x.shape) for name, x in load_file(base / WEIGHTS).items()}


@pytest.mark.parametrize("command", ["extract", "apply", "info"])
def test_help_has_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["delta", command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  gmt-train delta {command} " in capsys.readouterr().out
