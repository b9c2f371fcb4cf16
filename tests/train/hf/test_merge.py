"""Merges of model folders: the library's numbers, tensor by tensor."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import gmt_jax
from train.__main__ import main
from train.hf.export import export
from train.hf.load import load_params
from train.hf.tokenizer import load_tokenizer
from train.model import load_model_config

Capture = pytest.CaptureFixture[str]
Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors], None]
Rewrite = Callable[[Path, Change], None]
Copy = Callable[[Path, Path], Path]
WEIGHTS = "model.safetensors"


def noisy(tensors: Tensors) -> None:
    draw = np.random.default_rng(1).standard_normal
    for name, x in tensors.items():
        tensors[name] = x + (0.1 * draw(x.shape)).astype(x.dtype)


@pytest.fixture
def tuned(base: Path, tmp_path: Path, rewrite: Rewrite, copy_folder: Copy) -> Path:
    """The base with noise and a small file of its own."""
    folder = copy_folder(base, tmp_path / "tuned")
    rewrite(folder, noisy)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def merge(kind: str, base: Path, tuned: Path, out: Path, *argv: str) -> int:
    folders = ("--base", str(base), "--tuned", str(tuned), "--out", str(out))
    return main(["merge", kind, *folders, *argv])


CASES = {
    "dare": (["--drop-rate", "0.9", "--seed", "5"],
             lambda a, b: gmt_jax.dare(a, b, 0.9, jax.random.key(5))),
    "interpolate": (["--weight", "0.25"], lambda a, b: gmt_jax.interpolate(a, b, 0.25)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_a_folder_holds_what_the_tree_gives(
    kind: str, base: Path, tuned: Path, tmp_path: Path
) -> None:
    argv, rule = CASES[kind]
    assert merge(kind, base, tuned, tmp_path / "merged", *argv) == 0
    trees = [jax.tree.map(jnp.asarray, load_file(folder / WEIGHTS)) for folder in (base, tuned)]
    wanted, got = rule(*trees), load_file(tmp_path / "merged" / WEIGHTS)
    assert got.keys() == wanted.keys()
    assert all(x.tobytes() == np.asarray(wanted[name]).tobytes() for name, x in got.items())
    assert any(x.tobytes() != np.asarray(trees[0][name]).tobytes() for name, x in got.items())


@pytest.mark.parametrize("kind", CASES)
def test_the_small_files_are_the_tuned_models(
    kind: str, base: Path, tuned: Path, tmp_path: Path
) -> None:
    assert merge(kind, base, tuned, tmp_path / "merged", *CASES[kind][0]) == 0
    files = {f.name: f.read_bytes() for f in tuned.iterdir() if f.name != WEIGHTS}
    merged = {f.name: f.read_bytes() for f in (tmp_path / "merged").iterdir() if f.name != WEIGHTS}
    assert merged == files


def test_a_tied_base_that_holds_its_head_and_its_export_go_together(
    base: Path, tmp_path: Path, rewrite: Rewrite
) -> None:
    rewrite(base, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    config = load_model_config(base)
    tuned = jax.tree.map(lambda x: 1.5 * x, load_params(base, config))
    export(config, tuned, base, tmp_path / "tuned", "bfloat16", tokenizer=load_tokenizer(base))
    folders = ["--base", str(base), "--tuned", str(tmp_path / "tuned")]
    file, out = str(tmp_path / "some.delta"), tmp_path / "again"
    assert main(["delta", "extract", *folders, "--out", file]) == 0
    assert main(["delta", "apply", "--base", str(base), "--delta", file, "--out", str(out)]) == 0
    for path in (tmp_path / "tuned").iterdir():
        if path.name not in (WEIGHTS, "manifest.json"):  # An export vouches for its own files.
            assert (out / path.name).read_bytes() == path.read_bytes()
    weights, again = (load_file(path / WEIGHTS) for path in (tmp_path / "tuned", out))
    assert {k: v.tobytes() for k, v in weights.items()} == {
        k: v.tobytes() for k, v in again.items()
    }
    assert merge("dare", base, tmp_path / "tuned", tmp_path / "m", "--drop-rate", "0.5") == 0
    assert load_params(tmp_path / "m", load_model_config(tmp_path / "m")).keys() == tuned.keys()


@pytest.mark.parametrize(("weight", "end"), [("0", "base"), ("1", "tuned")])
def test_the_ends_of_the_line_are_the_files(
    weight: str, end: str, base: Path, tuned: Path, tmp_path: Path
) -> None:
    assert merge("interpolate", base, tuned, tmp_path / "merged", "--weight", weight) == 0
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (tmp_path / end / WEIGHTS).read_bytes()


def test_a_merged_folder_loads_in_transformers(base: Path, tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    assert merge("dare", base, tuned, tmp_path / "merged", "--drop-rate", "0.9") == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").num_parameters() > 0


@pytest.mark.parametrize(
    ("kind", "argv", "said"),
    [
        ("dare", ["--drop-rate", "1"], "--drop-rate is the share of changes to drop, in [0, 1)"),
        ("dare", ["--drop-rate", "nan"], "--drop-rate is the share of changes to drop"),
        ("dare", ["--drop-rate", "0.5", "--seed", "-1"], "--seed must be from 0"),
        ("interpolate", ["--weight", "1.5"], "--weight is how far to go from base to tuned"),
    ],
)
def test_numbers_out_of_range_are_refused(
    kind: str, argv: list[str], said: str, base: Path, tuned: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert merge(kind, base, tuned, tmp_path / "merged", *argv) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(new=t["model.norm.weight"]), "only in {tuned}: new"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(32, np.float32)}),
            "but F32 in {tuned}: model.norm.weight",
        ),
    ],
)
def test_models_that_do_not_match_are_refused_by_name(
    change: Change,
    said: str,
    base: Path,
    tuned: Path,
    tmp_path: Path,
    capsys: Capture,
    rewrite: Rewrite,
) -> None:
    rewrite(tuned, change)
    assert merge("interpolate", base, tuned, tmp_path / "merged", "--weight", "0.5") == 2
    err = capsys.readouterr().err
    assert said.format(tuned=tuned) in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_integers_are_refused_by_name(
    base: Path, tuned: Path, tmp_path: Path, capsys: Capture, rewrite: Rewrite
) -> None:
    for folder in (base, tuned):
        rewrite(folder, lambda t: t.update(steps=np.arange(3)))
    assert merge("interpolate", base, tuned, tmp_path / "merged", "--weight", "0.5") == 2
    assert "can only merge tensors of F32, F16, BF16; not steps" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_nothing_is_written_over(base: Path, tuned: Path, capsys: Capture) -> None:
    before = (tuned / WEIGHTS).read_bytes()
    assert merge("interpolate", base, tuned, tuned, "--weight", "0.5") == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tuned / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("kind", CASES)
def test_help_has_an_example(kind: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["merge", kind, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  gmt-train merge {kind} " in capsys.readouterr().out
