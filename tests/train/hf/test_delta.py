"""Deltas of model folders: the tuned folder comes back, and nothing else is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from train.__main__ import main
from train.hf.save import save_params
from train.model import ModelConfig, init_params

Capture = pytest.CaptureFixture[str]
Tensors = dict[str, np.ndarray]
WEIGHTS = "model.safetensors"


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def sparsely(tensors: Tensors) -> None:
    """Changes a twentieth of the entries of all tensors but one."""
    rng = np.random.default_rng(1)
    for name, weights in tensors.items():
        if name != "model.norm.weight":
            tensors[name] = np.where(rng.random(weights.shape) < 0.05, -weights - 1, weights)


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model in bfloat16."""
    folder = copy(tiny_model, tmp_path / "base")
    rewrite(folder, lambda t: t.update({k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()}))
    return folder


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    folder = copy(base, tmp_path / "tuned")
    rewrite(folder, sparsely)
    return folder


@pytest.fixture
def file(base: Path, tuned: Path, tmp_path: Path) -> Path:
    out = tmp_path / "some.delta"
    run("extract", "--base", base, "--tuned", tuned, "--out", out)
    return out


def run(*argv: object) -> None:
    assert main(["delta", *map(str, argv)]) == 0


def fails(capsys: Capture, *argv: object) -> str:
    """The one line of a command that ends with status 2 and leaves everything as it was."""
    place = Path(str(argv[argv.index("--out") + 1])).parent
    before = {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}
    capsys.readouterr()
    assert main(["delta", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gmt-train: error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert {path: path.is_file() and path.read_bytes() for path in place.rglob("*")} == before
    return captured.err


def test_the_tuned_folder_comes_back_bit_for_bit(
    base: Path, tuned: Path, file: Path, tmp_path: Path
) -> None:
    run("apply", "--base", base, "--delta", file, "--out", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tuned)


def test_nan_payloads_and_signed_zeros_come_back(base: Path, tmp_path: Path) -> None:
    tuned = copy(base, tmp_path / "tuned")

    def odd(tensors: Tensors) -> None:
        row = tensors["model.norm.weight"]
        row.view("u2")[:5] = [0x7FC1, 0xFFC2, 0x8000, 0x0000, 0x0001]

    rewrite(tuned, odd)
    run("extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "odd.delta")
    run("apply", "--base", base, "--delta", tmp_path / "odd.delta", "--out", tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tuned / WEIGHTS).read_bytes()


def test_the_applied_folder_loads_in_transformers(base: Path, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run("apply", "--base", base, "--delta", file, "--out", tmp_path / "again")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("hello").input_ids


def test_at_five_per_cent_the_file_is_below_a_tenth_of_the_model(tmp_path: Path) -> None:
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
    base: Path, tuned: Path, file: Path, tmp_path: Path
) -> None:
    """And a delta fits its base however that is cut."""
    whole = load_file(tuned / WEIGHTS)
    cut(base, "model-0000{}-of-00002.safetensors")
    run("apply", "--base", base, "--delta", file, "--out", tmp_path / "again")
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


def test_info_says_what_there_is(base: Path, tuned: Path, file: Path, capsys: Capture) -> None:
    pairs = [(x, load_file(tuned / WEIGHTS)[name]) for name, x in load_file(base / WEIGHTS).items()]
    entries = sum(int((a.view("u2") != b.view("u2")).sum()) for a, b in pairs)
    tensors = sum(a.tobytes() != b.tobytes() for a, b in pairs)
    capsys.readouterr()
    run("info", file)
    out = capsys.readouterr().out
    with safe_open(file, "numpy") as opened:
        said = opened.metadata()
    assert f"tensors changed {tensors} of 20" in out
    assert f"entries changed {entries:,} of {sum(a.size for a, _ in pairs):,} (5." in out
    for part in (said["base"], said["tuned"], "BF16", "files carried   none"):
        assert part in out


def test_the_metadata_say_version_density_type_and_shapes(file: Path, base: Path) -> None:
    with safe_open(file, "numpy") as opened:
        said = opened.metadata()
    assert (said["format"], said["version"], said["dtype"]) == ("gmt-jax.delta", "1", "BF16")
    assert 0.04 < float(said["density"]) < 0.06
    shapes = {n: t["shape"] for n, t in json.loads(said["contents"])["tensors"].items()}
    assert shapes == {name: list(x.shape) for name, x in load_file(base / WEIGHTS).items()}


def _another_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"].view("u2")[0] ^= 1


def test_another_base_is_refused(base: Path, file: Path, tmp_path: Path, capsys: Capture) -> None:
    rewrite(base, _another_norm)
    said = fails(capsys, "apply", "--base", base, "--delta", file, "--out", tmp_path / "again")
    assert "its model.norm.weight is not that of the base" in said


def test_a_base_with_another_tokenizer_is_refused(
    base: Path, file: Path, tmp_path: Path, capsys: Capture
) -> None:
    (base / "tokenizer.json").write_text("{}")
    said = fails(capsys, "apply", "--base", base, "--delta", file, "--out", tmp_path / "again")
    assert "its tokenizer.json is not that of the base" in said


def _flipped(content: bytes) -> bytes:
    """One bit of the last value: nothing but a digest can tell."""
    return content[:-1] + bytes([content[-1] ^ 1])


def _flipped_position(content: bytes) -> bytes:
    header = 8 + int.from_bytes(content[:8], "little")
    return content[: header + 3] + bytes([content[header + 3] ^ 4]) + content[header + 4 :]


def _replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert content.count(old.encode()) >= 1
        return content.replace(old.encode(), new.encode(), 1)

    return change


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_flipped, "is damaged; download or extract it again"),
        (_flipped_position, "is damaged; download or extract it again"),
        (lambda content: content[:-7], "is not a whole safetensors file"),
        (lambda content: content[:5], "is not a whole safetensors file"),
        (_replaced('"version":"1"', '"version":"2"'), "a delta of version 2, and version 1 is"),
        (_replaced('"gmt-jax.delta"', '"another.thing"'), "is not a delta"),
        (_replaced('"dtype":"BF16"', '"dtype":"BF17"'), "its metadata are damaged"),
        (_replaced(r"\"changed\":", r"\"chonged\":"), "its metadata are damaged"),
        (_replaced(r"\"config.json\"", r"\"../onfig.js\""), "its metadata are damaged"),
        (_replaced("positions/model.layers.0.", "positions/model.layers.7."), "is damaged"),
    ],
    ids=["value", "position", "truncated", "stub", "version", "format", "summary", "contents",
         "path", "part"],
)  # fmt: skip
def test_a_tampered_file_is_refused(
    base: Path,
    file: Path,
    tmp_path: Path,
    capsys: Capture,
    harm: Callable[[bytes], bytes],
    said: str,
) -> None:
    file.write_bytes(harm(file.read_bytes()))
    error = fails(capsys, "apply", "--base", base, "--delta", file, "--out", tmp_path / "again")
    assert said in error
    assert str(file) in error


def test_a_file_that_is_not_there_is_refused(base: Path, tmp_path: Path, capsys: Capture) -> None:
    argv = ("apply", "--base", base, "--delta", tmp_path / "no.delta", "--out", tmp_path / "again")
    assert "no.delta: no such file" in fails(capsys, *argv)


def test_a_model_is_no_delta(base: Path, tmp_path: Path, capsys: Capture) -> None:
    argv = ("apply", "--base", base, "--delta", base / WEIGHTS, "--out", tmp_path / "again")
    assert "is not a delta; make one with" in fails(capsys, *argv)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.pop("model.layers.0.mlp.up_proj.weight"),
            "only in {base}: model.layers.0",
        ),
        (lambda t: t.update(new=t["model.norm.weight"]), "only in {tuned}: new"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:-1]}),
            "[32] in {base} but [31] in {tuned}: model.norm.weight",
        ),
        (
            lambda t: t.update({k: v.astype(np.float32) for k, v in t.items()}),
            "BF16 in {base} but F32 in {tuned}: model.embed_tokens.weight, model.layers.{{0-1}}.",
        ),
    ],
    ids=["missing", "new", "shape", "type"],
)
def test_models_that_do_not_match_are_refused_by_name(
    base: Path, tuned: Path, tmp_path: Path, capsys: Capture, change: Any, said: str
) -> None:
    rewrite(tuned, change)
    argv = ("extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "some.delta")
    assert said.format(base=base, tuned=tuned) in fails(capsys, *argv)


def test_a_base_of_other_tensors_is_refused_by_name(
    base: Path, file: Path, tmp_path: Path, capsys: Capture
) -> None:
    rewrite(base, lambda t: t.update(extra=t["model.norm.weight"]))
    said = fails(capsys, "apply", "--base", base, "--delta", file, "--out", tmp_path / "again")
    assert f"only in {base}: extra" in said


def test_nothing_is_written_over(
    base: Path, tuned: Path, file: Path, tmp_path: Path, capsys: Capture
) -> None:
    said = fails(capsys, "apply", "--base", base, "--delta", file, "--out", tuned)
    assert "is not empty" in said
    said = fails(capsys, "extract", "--base", base, "--tuned", tuned, "--out", file)
    assert "some.delta exists" in said


@pytest.mark.parametrize("command", ["extract", "apply", "info"])
def test_help_has_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["delta", command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  gmt-train delta {command} " in capsys.readouterr().out
