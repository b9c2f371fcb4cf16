"""Compact runs of a tiny model: they train, resume and export, and keep the rest of the base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from train.__main__ import main
from train.config import load_config
from train.errors import UserError
from train.generate import Sampling
from train.hf.delta import extract
from train.hf.safetensors import open_weights
from train.manifest import read_manifest
from train.restore import complete_prompts, export_run, extract_run
from train.run import Run, read_records
from train.sft import sft

pytestmark = pytest.mark.usefixtures("two_devices")

Write = Callable[..., Path]
MASK = "{kind: one_off, mask_ratio: 0.8, compact: true}"


def _train(file: Path, *overrides: str, resume: bool = False) -> Run:
    config = load_config(file, overrides)
    sft(config, resume=resume, console=Console(quiet=True))
    return Run(Path(config.run))


def _losses(run: Run, key: str = "loss") -> list[float]:
    return [r[key] for r in read_records(run.metrics_file) if key in r]


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    with open_weights(folder) as reader:
        return {name: reader.tensor(name) for name in reader.names}


@pytest.mark.slow
def test_it_learns_and_exports_the_base_with_a_fifth_changed(
    write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    run = _train(write_config(export_dtype="float32"), f"optimizer.mask={MASK}")
    losses = _losses(run, "eval_loss")
    assert losses[-1] < 0.9 * losses[0]
    assert _losses(run, "masked_fraction") == pytest.approx([0.8] * 6, abs=0.01)
    base, tuned = _tensors(tiny_model), _tensors(run.export)
    changed = sum(int((base[name] != tuned[name]).sum()) for name in base)
    share = changed / sum(tensor.size for tensor in base.values())
    assert 0.15 < share <= 0.21
    again = export_run(run.folder, tmp_path / "again", "float32")
    for name, tensor in _tensors(again).items():
        np.testing.assert_array_equal(tensor, tuned[name])
    extract(tiny_model, again, tmp_path / "export.delta")
    contents = extract_run(run.folder, tiny_model, tmp_path / "run.delta")
    assert (tmp_path / "run.delta").read_bytes() == (tmp_path / "export.delta").read_bytes()
    assert contents.num_changed == changed
    sampling = Sampling(max_new_tokens=4)
    assert complete_prompts(str(run.folder), ["3+9="], sampling) == complete_prompts(
        str(run.export), ["3+9="], sampling
    )


@pytest.mark.slow
def test_its_change_of_matrices_is_written_for_peft(
    write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    ratios = 'mask_ratios: {"embed|norm": 1.0}'
    run = _train(
        write_config(export_dtype="float32", steps=2), f"optimizer.mask={MASK[:-1]}, {ratios}}}"
    )
    adapter = tmp_path / "adapter"
    command = ["delta", "shira", "--base", str(tiny_model), "--tuned", str(run.folder)]
    assert main([*command, "--out", str(adapter)]) == 0
    base, tuned, parts = _tensors(tiny_model), _tensors(run.export), _tensors(adapter)
    name = "model.layers.1.mlp.up_proj"
    matrix = base[f"{name}.weight"].copy()
    stem = f"base_model.model.{name}.shira"
    matrix[tuple(parts[f"{stem}_indices"])] += parts[f"{stem}_weight"]
    # A change that is larger than the weight has coarser last bits.
    np.testing.assert_allclose(matrix, tuned[f"{name}.weight"], atol=1e-8)
    assert (matrix != base[f"{name}.weight"]).any()


def test_a_resumed_run_has_the_same_losses_and_its_checkpoints_no_base(
    write_config: Write, tmp_path: Path
) -> None:
    mask = f"optimizer.mask={MASK}"
    whole = _train(write_config(), mask)
    # As if it had been killed after update 4.
    shutil.copytree(whole.folder, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed/checkpoints/6")
    resumed = _train(write_config(run=str(tmp_path / "killed")), mask, resume=True)
    assert _losses(resumed) == _losses(whole)
    assert _losses(resumed, "eval_loss") == _losses(whole, "eval_loss")
    arrays = read_manifest(whole.checkpoints / "6").facts["arrays"]
    assert not [name for name in arrays if "weights" in name]
    assert arrays["params/chosen/layers/mlp/up/weight/positions"] == "uint8[2, 64, 26]"


@pytest.mark.slow
def test_another_base_is_refused(
    write_config: Write, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    file = write_config(model={"path": str(model)}, steps=2)
    run = _train(file, f"optimizer.mask={MASK}")
    tensors = _tensors(model)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    safetensors.numpy.save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.path holds other weights"):
        export_run(run.folder, tmp_path / "out", "float32")


@pytest.mark.slow
@pytest.mark.usefixtures("all_devices")
@pytest.mark.parametrize(
    ("mask", "microbatches"),
    [
        ("{kind: one_off, mask_ratio: 0.8, compact: true}", 2),
        ("{kind: fisher, mask_ratio: 0.8, warmup: 2, scope: tensor, compact: true}", 1),
        ("{kind: magnitude, mask_ratio: 0.8, compact: true}", 1),
        ("{kind: gradient_to_weight, mask_ratio: 0.8, compact: true}", 1),
    ],
)
@pytest.mark.parametrize("mesh", ["{fsdp: 4, tensor: 2}", "{data: 2, fsdp: 2, context: 2}"])
def test_every_kind_trains_on_a_mesh(
    write_config: Write, mask: str, microbatches: int, mesh: str
) -> None:
    overrides = [f"optimizer.mask={mask}", f"mesh={mesh}", f"batch.num_microbatches={microbatches}"]
    run = _train(write_config(steps=3, batch={"size": 16}), *overrides)
    losses = _losses(run)
    assert losses[-1] < losses[0]
    assert _losses(run, "masked_fraction") == pytest.approx([0.8] * 3, abs=0.01)


def _write_mask(model: Path, file: Path) -> dict[str, np.ndarray]:
    """A mask of some entries of most matrices, rows of the embeddings and a norm."""
    rng = np.random.default_rng(0)
    mask = {}
    for name, tensor in _tensors(model).items():
        if "embed" in name:
            mask[name] = np.repeat(rng.random((tensor.shape[0], 1)) > 0.5, tensor.shape[1], axis=1)
        elif "down_proj" not in name:
            mask[name] = rng.random(tensor.shape) > (-1 if "norm" in name else 0.8)
    safetensors.numpy.save_file(mask, file)
    return mask


@pytest.mark.slow
def test_a_mask_of_a_file_trains_the_same_weights_as_over_whole_weights(
    write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mask.safetensors"
    mask = _write_mask(tiny_model, file)
    dense = f"optimizer.mask={{kind: fixed_mask, file: {file}}}"
    compact = f"optimizer.mask={{kind: fixed_mask, file: {file}, compact: true, slots: 32}}"
    runs = [
        _train(write_config(export_dtype="float32"), *overrides, f"run={tmp_path}/{n}")
        for n, overrides in enumerate([[dense], [compact]])
    ]
    assert _losses(runs[1]) == pytest.approx(_losses(runs[0]), rel=1e-4)
    assert _losses(runs[1], "masked_fraction") == _losses(runs[0], "masked_fraction")
    base, whole, ours = (_tensors(folder) for folder in (tiny_model, *(r.export for r in runs)))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, whole[name], atol=1e-4)
        changed = tensor != base[name]
        assert not (changed & ~mask.get(name, np.zeros_like(changed))).any()
    (runs[1].checkpoints / "6").rename(tmp_path / "set-aside")
    shutil.rmtree(runs[1].export)
    resumed = _train(runs[1].folder / "config.yaml", resume=True)
    for name, tensor in _tensors(resumed.export).items():
        np.testing.assert_array_equal(tensor, ours[name])
    with pytest.raises(UserError, match=r"more than 8 of 128 entries in a row"):
        _train(write_config(run=str(tmp_path / "no")), compact.replace("slots: 32", "slots: 8"))
    assert not (tmp_path / "no").exists()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Forty sums with a right and a wrong answer."""
    file = tmp_path / "pairs.jsonl"
    with file.open("w") as out:
        for n in range(40):
            prompt = [{"role": "user", "content": f"{n}+{n * n}="}]
            answers = {"chosen": n + n * n, "rejected": n + n * n + 7}
            sides = {k: [{"role": "assistant", "content": str(v)}] for k, v in answers.items()}
            out.write(json.dumps({"prompt": prompt} | sides) + "\n")
    return file


DPO = {"objective": {"kind": "dpo", "beta": 0.5, "reference": None}}
STREAM = {"streaming": True, "eval_fraction": 0, "shuffle_buffer": 7, "packing": "packed"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "mask"),
    [
        ({"data": {"packing": "packed"}}, "one_off"),
        ({"data": {"packing": "bucketed"}}, "one_off"),
        ({"batch": {"size": 16, "num_microbatches": 2}}, "one_off"),
        ({"data": STREAM}, "one_off"),
        ({"data": STREAM, "batch": {"size": 16, "num_microbatches": 2}}, "one_off, warmup: 1"),
        (DPO, "one_off"),
        (DPO | {"data": {"packing": "packed"}}, "one_off"),
        (DPO | {"batch": {"size": 8, "num_microbatches": 2}}, "gradient_to_weight"),
    ],
    ids=[
        "packed",
        "bucketed",
        "microbatches",
        "stream",
        "stream with a sum",
        "dpo",
        "packed dpo",
        "dpo with microbatches",
    ],
)
def test_it_trains_as_over_whole_weights_and_goes_on_to_the_same_bits(
    write_config: Write,
    tiny_data: Path,
    pairs: Path,
    tmp_path: Path,
    sections: dict[str, Any],
    mask: str,
) -> None:
    data = {"train": [str(pairs if "objective" in sections else tiny_data)]}
    sections = sections | {"data": data | sections.get("data", {})}
    forms = {"whole": "selection: balanced", "compact": "compact: true"}
    whole, compact = (
        _train(
            write_config(run=str(tmp_path / name), **sections),
            f"optimizer.mask={{kind: {mask}, mask_ratio: 0.8, {form}}}",
        )
        for name, form in forms.items()
    )
    for key in ("loss", "eval_loss"):
        expected, found = _losses(whole, key), _losses(compact, key)
        assert bool(found) == (key == "loss" or not sections["data"].get("streaming"))
        if "warmup" not in mask:  # In which whole weights do not move.
            assert found == pytest.approx(expected, rel=1e-3)
    losses = _losses(compact)
    assert losses[-1] < losses[0]
    (compact.checkpoints / "6").rename(tmp_path / "set-aside")
    _train(compact.folder / "config.yaml", resume=True)
    assert _losses(compact) == losses
