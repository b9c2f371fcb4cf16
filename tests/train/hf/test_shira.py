"""What changed in matrices as a SHiRA adapter, which PEFT adds up to the tuned model."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from train.__main__ import main
from train.hf.adapter import CONFIG, WEIGHTS
from train.hf.shira import difference
from train.model import ModelConfig

MODEL = "model.safetensors"
Saved = tuple[Path, ModelConfig, Any]


def _tuned(folder: Path, out: Path, *, others: bool = False, share: float = 0.05) -> Path:
    """A folder in which some entries of most matrices are different."""
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(out / MODEL)
    rng = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if "q_proj.weight" in name or "down_proj.weight" in name or (others and "norm" in name):
            change = rng.normal(0, 0.01, tensor.shape).astype(np.float32)
            moved = np.where(rng.random(tensor.shape) < share, tensor + change, tensor)
            tensors[name] = moved.astype(tensor.dtype)
    safetensors.numpy.save_file(tensors, out / MODEL, {"format": "pt"})
    return out


def _write(base: Path, tuned: Path, out: Path) -> int:
    return main(["delta", "shira", "--base", str(base), "--tuned", str(tuned), "--out", str(out)])


def test_a_matrix_has_the_changed_entries_and_zeros(saved: Saved, tmp_path: Path) -> None:
    base, _, _ = saved
    tuned = _tuned(base, tmp_path / "tuned")
    assert _write(base, tuned, tmp_path / "adapter") == 0
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["peft_type"] == "SHIRA"
    assert config["target_modules"] == ["down_proj", "q_proj"]
    before, after = (safetensors.numpy.load_file(folder / MODEL) for folder in (base, tuned))
    parts = safetensors.numpy.load_file(tmp_path / "adapter" / WEIGHTS)
    assert len(parts) == 2 * 2 * 3
    for name in parts:
        stem, _, kind = name.rpartition(".")
        matrix = before[stem.removeprefix("base_model.model.") + ".weight"]
        if kind != "shira_weight":
            continue
        values, positions = parts[name], parts[f"{stem}.shira_indices"]
        assert positions.shape == (2, len(values))
        assert len(values) == config["r"] * sum(matrix.shape)
        assert len({*zip(*positions.tolist(), strict=True)}) == len(values)
        matrix[tuple(positions)] += values
        tensor = stem.removeprefix("base_model.model.") + ".weight"
        np.testing.assert_array_equal(matrix, after[tensor])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_adds_it_up_to_the_tuned_model(saved: Saved, tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base, _, _ = saved
    if dtype == "bfloat16":
        tensors = safetensors.numpy.load_file(base / MODEL)
        tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
        safetensors.numpy.save_file(tensors, base / MODEL, {"format": "pt"})
    tuned = _tuned(base, tmp_path / "tuned")
    assert _write(base, tuned, tmp_path / "adapter") == 0
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = peft.PeftModel.from_pretrained(
        load(base, dtype=getattr(torch, dtype)), tmp_path / "adapter"
    )
    merged = model.merge_and_unload().state_dict()
    for name, tensor in load(tuned, dtype=getattr(torch, dtype)).state_dict().items():
        assert torch.equal(merged[name], tensor), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"others": True}, "others changed: model.layers"),
        ({"share": 0.9}, "entries of each matrix, more than there are in model.layers"),
        ({"share": 0}, "the tuned model has the base's weights"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    saved: Saved,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    base, _, _ = saved
    assert _write(base, _tuned(base, tmp_path / "tuned", **options), tmp_path / "adapter") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()


def test_differences_hit_the_bits_where_they_can() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0, 0.05, 100_000).astype(np.float32)
    after = before + rng.normal(0, 1e-3, before.size).astype(np.float32)
    missed = before + difference(before, after) != after
    assert not missed.any()
    # A change of the whole size of a weight may leave none of its last bits.
    assert np.float32(1) + difference(np.float32([1]), np.float32([1e-9]))[0] == 0
