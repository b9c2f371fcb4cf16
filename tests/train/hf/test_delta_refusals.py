"""Deltas, bases and outputs that are refused: one line is said, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.__main__ import main

Capture = pytest.CaptureFixture[str]
Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors], None]
Rewrite = Callable[[Path, Change], None]
WEIGHTS = "model.safetensors"


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


def _another_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"].view("u2")[0] ^= 1


def test_another_base_is_refused(
    base: Path, delta: Path, tmp_path: Path, capsys: Capture, rewrite: Rewrite
) -> None:
    rewrite(base, _another_norm)
    said = fails(capsys, "apply", "--base", base, "--delta", delta, "--out", tmp_path / "again")
    assert "its model.norm.weight is not that of the base" in said


def test_a_base_with_another_tokenizer_is_refused(
    base: Path, delta: Path, tmp_path: Path, capsys: Capture
) -> None:
    (base / "tokenizer.json").write_text("{}")
    said = fails(capsys, "apply", "--base", base, "--delta", delta, "--out", tmp_path / "again")
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
    delta: Path,
    tmp_path: Path,
    capsys: Capture,
    harm: Callable[[bytes], bytes],
    said: str,
) -> None:
    delta.write_bytes(harm(delta.read_bytes()))
    error = fails(capsys, "apply", "--base", base, "--delta", delta, "--out", tmp_path / "again")
    assert said in error
    assert str(delta) in error


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
    base: Path,
    tuned: Path,
    tmp_path: Path,
    capsys: Capture,
    change: Any,
    said: str,
    rewrite: Rewrite,
) -> None:
    rewrite(tuned, change)
    argv = ("extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "some.delta")
    assert said.format(base=base, tuned=tuned) in fails(capsys, *argv)


def test_a_base_of_other_tensors_is_refused_by_name(
    base: Path, delta: Path, tmp_path: Path, capsys: Capture, rewrite: Rewrite
) -> None:
    rewrite(base, lambda t: t.update(extra=t["model.norm.weight"]))
    said = fails(capsys, "apply", "--base", base, "--delta", delta, "--out", tmp_path / "again")
    assert f"only in {base}: extra" in said


def test_nothing_is_written_over(
    base: Path, tuned: Path, delta: Path, tmp_path: Path, capsys: Capture
) -> None:
    said = fails(capsys, "apply", "--base", base, "--delta", delta, "--out", tuned)
    assert "is not empty" in said
    said = fails(capsys, "extract", "--base", base, "--tuned", tuned, "--out", delta)
    assert "some.delta exists" in said
