"""Figures of every tensor: those of NumPy, at their time, and without a copy of the gradient."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from gmt_jax import gmt
from train.config import load_config
from train.fit import Measure, fit
from train.run import read_records
from train.sft import sft
from train.sharding import make_mesh, microbatch_sharding, param_shardings
from train.step import Sums, TrainState, jit_train_step, state_shardings

AXES = {"a": ("embed", "ffn"), "layers": {"b": ("layers", "ffn", "embed")}}


def _stacked(path: Any) -> int | None:
    return 0 if path[0].key == "layers" else None


def _norms(tree: Any) -> dict[str, np.ndarray]:
    a, b = np.asarray(tree["a"], np.float64), np.asarray(tree["layers"]["b"], np.float64)
    return {"a": np.linalg.norm(a), "layers/b": np.sqrt(np.square(b).sum((1, 2)))}


class Quadratic:
    """Half the squared distance of the weights from a point, whose gradient is the difference."""

    unit = "rows"

    def weight(self, batch: Any) -> jax.Array:
        return jnp.float32(1)

    def __call__(self, params: Any, batch: Any) -> Sums:
        parts = jax.tree.map(lambda p: 0.5 * jnp.sum(jnp.square(p - batch["x"][0, 0])), params)
        return Sums(sum(jax.tree.leaves(parts)), jnp.float32(1), {})


def _params(width: int = 8) -> Any:
    a, b = jax.random.split(jax.random.key(0))
    return {
        "a": jax.random.normal(a, (width, 2 * width)),
        "layers": {"b": jax.random.normal(b, (3, 2 * width, width))},
    }


def _compiled(
    measure: Measure | None, width: int, report: bool = True
) -> tuple[Any, TrainState, Any]:
    mesh, optimizer = (
        make_mesh(fsdp=2, tensor=2, data=2),
        gmt(optax.sgd(0.5), 0.25, report=True, stacked_axes=_stacked),
    )
    params = _params(width)
    shapes = jax.eval_shape(lambda: params)
    shardings = state_shardings(mesh, optimizer, shapes, param_shardings(mesh, shapes, AXES))
    state = jax.device_put(TrainState(jnp.int32(0), params, optimizer.init(params)), shardings)
    batch = jax.device_put({"x": np.zeros((1, 8, 1), np.float32)}, microbatch_sharding(mesh))
    step = jit_train_step(Quadratic(), optimizer, mesh, shardings, measure, report)
    return step.lower(state, batch).compile(), state, batch


def test_figures_are_those_of_numpy_and_of_the_masks_report() -> None:
    step, state, batch = _compiled(Measure(_stacked), 8)
    for _ in range(2):
        before = jax.device_get(state.params)
        state, metrics = step(state, batch)
        figures = metrics["tensors"]
        update = jax.tree.map(np.subtract, jax.device_get(state.params), before)
        for name, tree in (("grad_norm", before), ("weight_norm", before), ("update_norm", update)):
            for path, expected in _norms(tree).items():
                np.testing.assert_allclose(figures[name][path], expected, rtol=1e-5)
        masked = {
            "a": np.mean(update["a"] == 0),
            "layers/b": np.mean(update["layers"]["b"] == 0, axis=(1, 2)),
        }
        for path, share in masked.items():
            np.testing.assert_allclose(figures["mask/masked"][path], share, atol=1e-6)
        assert figures["mask/overlap"]["layers/b"].shape == (3,)


def test_a_mask_of_one_threshold_has_figures_by_parameter() -> None:
    optimizer, params = gmt(optax.sgd(0.5), 0.25, scope="global", report=True), _params()
    updates, state = optimizer.update(params, optimizer.init(params), params)
    figures = Measure(_stacked)(params, params, updates, state)
    assert figures["mask/masked"]["layers/b"].shape == ()
    assert figures["grad_norm"]["layers/b"].shape == (3,)


def test_they_need_no_copy_of_the_gradient() -> None:
    width = 256
    memory = [
        _compiled(measure, width)[0].memory_analysis().temp_size_in_bytes
        for measure in (None, Measure(_stacked))
    ]
    of_a_shard = 3 * 2 * width * width * 4 // 4
    assert memory[1] - memory[0] < of_a_shard // 10, memory


def test_a_program_without_the_report_does_not_compute_it() -> None:
    whole, _, _ = _compiled(None, 256)
    silent, state, batch = _compiled(None, 256, report=False)
    assert silent.cost_analysis()["flops"] < 0.9 * whole.cost_analysis()["flops"]
    ever = optax.tree.get(state.opt_state, "overall").ever_kept.item()
    state, metrics = silent(state, batch)
    assert optax.tree.get(state.opt_state, "overall").ever_kept.item() == ever == 0
    assert not [name for name in metrics if name.startswith("mask/")]


def test_fit_records_them_apart(tmp_path: Path) -> None:
    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.square(batch["x"] @ params["w"]))

    fitted = fit(
        {"w": jnp.ones(2)},
        loss,
        optax.sgd(0.1),
        lambda step: {"x": np.ones((8, 2), np.float32)},
        4,
        log_every=2,
        save_every=3,
        folder=tmp_path / "run",
        measure=Measure(),
    )
    assert not any("tensors" in record for record in fitted.records)
    records = list(read_records(tmp_path / "run/tensors.jsonl"))
    assert [record["step"] for record in records] == [2, 4]
    (norm,) = {*records[0]["tensors"]["grad_norm"].values()}
    by_step = {record["step"]: record for record in fitted.records}
    assert norm == pytest.approx(by_step[2]["grad_norm"])
    assert list(records[0]["tensors"]) == ["grad_norm", "update_norm", "weight_norm"]


def test_the_masks_report_is_that_of_the_recorded_updates() -> None:
    optimizer = gmt(optax.sgd(0.1), 0.5, report=True)
    params = {"w": jnp.arange(1.0, 9.0)}

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.sum(params["w"] * batch["x"][0])

    def batches(step: int) -> Any:
        return {"x": np.where(np.arange(8) // 2 == step % 4, 2.0, np.arange(8) / 8)[None]}

    options: dict[str, Any] = {"log_every": 3, "save_every": 2}
    fitted = fit(params, loss, optimizer, batches, 6, **options, measure=Measure(tensors=False))
    by_step = {record["step"]: record for record in fitted.records}
    assert not any("tensors" in record for record in fitted.records)
    assert {step: "mask/overlap" in record for step, record in by_step.items()} == {
        2: False, 3: True, 4: False, 6: True
    }  # fmt: skip
    kept = [{*np.argsort(batches(step)["x"][0])[4:]} for step in (2, 5)]
    overlap, either = (len(f(*kept)) for f in (set.intersection, set.union))
    assert by_step[6]["mask/overlap"] == pytest.approx(overlap / either)
    assert by_step[6]["mask/ever_kept"] == either / 8
    every = fit(params, loss, optimizer, batches, 6, **options)
    assert every.records[-1]["mask/ever_kept"] == 1
    np.testing.assert_array_equal(fitted.params["w"], every.params["w"])


@pytest.mark.slow
@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    "mask",
    [
        {"kind": "gmt", "report": True},
        {"kind": "none"},
        {"kind": "one_off", "mask_ratio": 0.9, "compact": True},
    ],
    ids=["gmt", "none", "compact"],
)
def test_a_resumed_run_has_the_figures_and_samples_of_the_whole(
    write_config: Callable[..., Path], mask: dict[str, Any]
) -> None:
    file = write_config(
        optimizer={"mask": mask},
        log_every=2,
        log_tensors=True,
        checkpoint={"every": 3},
        evaluation={"every": 1, "sample_every": 2, "prompts": ["3+9="], "max_new_tokens": 4},
    )
    whole = sft(load_config(file), console=Console(quiet=True))
    assert [sample["step"] for sample in whole.samples] == [0, 2, 4, 6]
    records = list(read_records(whole.tensors_file))
    assert [record["step"] for record in records] == [2, 4, 6]
    assert ("mask/overlap" in records[0]["tensors"]) == ("report" in mask)
    norms = records[0]["tensors"]["grad_norm"]
    by_step = {record["step"]: record for record in whole.records if "grad_norm" in record}
    total = np.sqrt(sum(np.square(values).sum() for values in norms.values()))
    assert total == pytest.approx(by_step[2]["grad_norm"], rel=1e-5)
    assert {len(values) for name, values in norms.items() if name.startswith("layers")} == {2}
    before = [whole.tensors_file.read_text(), whole.samples_file.read_text()]
    (whole.checkpoints / "6").rename(whole.folder / "aside")
    sft(load_config(file), resume=True, console=Console(quiet=True))
    assert [whole.tensors_file.read_text(), whole.samples_file.read_text()] == before
    assert json.loads(before[0].splitlines()[0])["step"] == 2
