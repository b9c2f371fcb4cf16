"""A run's newest weights are exported and complete prompts, as a model folder's do."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from train.__main__ import main
from train.checkpoint import Checkpoints
from train.config import load_config
from train.data.loader import Loader
from train.errors import UserError
from train.generate import Sampling
from train.hf.load import load_params
from train.hf.tokenizer import load_tokenizer
from train.manifest import read_manifest
from train.model import load_model_config
from train.restore import complete_prompts, export_run, extract_run
from train.run import Run
from train.step import TrainState


@pytest.fixture
def run(write_config: Callable[..., Path], tiny_model: Path) -> Run:
    """A run whose only checkpoint has half the base's weights; nothing is trained for it."""
    config = load_config(write_config())
    run = Run(Path(config.run))
    run.start(config)
    params = load_params(tiny_model, load_model_config(tiny_model))
    state = TrainState(jnp.int32(1), jax.tree.map(lambda x: x / 2, params), {})
    with Checkpoints(run.checkpoints, keep=1) as checkpoints:
        checkpoints.save(state, Loader(iter(grain.MapDataset.range(1))))
    return run


def test_the_newest_weights_are_exported(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """Beside a save in progress, which is left alone."""
    saving = run.checkpoints / "4.orbax-checkpoint-tmp"
    saving.mkdir()
    out = tmp_path / "out"
    assert export_run(run.folder, out, "float32") == out
    assert saving.is_dir()
    weights, base = (load_file(path / "model.safetensors") for path in (out, tiny_model))
    assert weights.keys() == base.keys()
    for name in base:
        np.testing.assert_array_equal(weights[name], base[name] / 2)


def test_a_runs_own_export_is_replaced_and_what_others_put_there_stays(
    run: Run, tmp_path: Path
) -> None:
    assert export_run(run.folder, None, "float32") == run.export
    (run.export / "notes.txt").write_text("beside the export")
    (run.export / "README.md").write_text("my own card")
    for _ in range(2):
        assert export_run(run.folder, None, "bfloat16") == run.export
        assert (run.export / "notes.txt").read_text() == "beside the export"
        assert (run.export / "README.md.kept").read_text() == "my own card"
        assert "my own card" not in (run.export / "README.md").read_text()
    assert load_file(run.export / "model.safetensors")["model.norm.weight"].dtype == "bfloat16"
    with pytest.raises(UserError, match="export is not empty"):
        export_run(run.folder, run.export, "float32")


def test_a_runs_own_export_is_of_the_dtype_that_it_would_write(run: Run, tmp_path: Path) -> None:
    config = run.config_file.read_text()
    run.config_file.write_text(config.replace("export_dtype: null", "export_dtype: float32"))
    with pytest.raises(UserError, match="as export_dtype says; set --out for bfloat16"):
        export_run(run.folder, None, "bfloat16")
    assert read_manifest(export_run(run.folder, None)).facts["dtype"] == "float32"
    out = export_run(run.folder, tmp_path / "out", "bfloat16")
    assert read_manifest(out).facts["dtype"] == "bfloat16"


def test_a_run_and_its_export_complete_prompts_alike(run: Run, tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=8)
    export_run(run.folder, None, "float32")
    completions = complete_prompts(str(run.folder), ["3+9="], sampling)
    assert complete_prompts(str(run.export), ["3+9="], sampling) == completions
    # Without the chat template it is another prompt.
    assert complete_prompts(str(run.export), ["3+9="], sampling, raw=True) != completions


def test_the_delta_of_a_run_is_that_of_its_export(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    export_run(run.folder, tmp_path / "export", "float32")
    for tuned, name in ((tmp_path / "export", "export"), (run.folder, "run")):
        models = ["--base", str(tiny_model), "--tuned", str(tuned)]
        assert main(["delta", "extract", *models, "--out", str(tmp_path / f"{name}.delta")]) == 0
    assert (tmp_path / "run.delta").read_bytes() == (tmp_path / "export.delta").read_bytes()
    with pytest.raises(UserError, match="exists; choose another file"):
        extract_run(run.folder, tiny_model, tmp_path / "run.delta")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        export_run(tmp_path, None, "float32")


def test_a_token_without_an_embedding_is_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as one that was added to the tokenizer, but not to the model."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([f"<|new{number}|>" for number in range(20)])
    tokenizer.save_pretrained(folder)
    assert main(["generate", str(folder), "one<|new19|>"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "prompt 1 has token 278, and the model's vocabulary ends at 271" in printed.err
    assert printed.err.count("\n") == 1
