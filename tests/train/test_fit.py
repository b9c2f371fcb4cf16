"""fit: models and optimizers that are not ours, sharded, stopped, resumed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from gmt_jax import fixed_mask, gmt, one_off
from train import checkpoint
from train.errors import UserError
from train.fit import Fitted, fit
from train.loop import Callback
from train.model import ModelConfig, abstract_params, init_params, logical_axes
from train.objective.sft import Sft
from train.sharding import make_mesh, param_shardings

D = 8


class Net(nnx.Module):
    """A small network that is none of ours."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(D, D, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


def batch_of(step: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(step).standard_normal((16, D)).astype(np.float32)
    return {"x": x, "y": np.tanh(np.roll(x, 1, axis=1))}


def mean_loss(model: Callable[[Any], Any], batch: Any) -> jax.Array:
    return jnp.mean(jnp.square(model(batch["x"]) - batch["y"]))


def with_standard_promotion(optimizer: Any) -> Any:
    """Optax's own code promotes dtypes and ranks."""

    def promoting(function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **extra_args: Any) -> Any:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return function(*args, **extra_args)

        return call

    return optax.GradientTransformationExtraArgs(
        promoting(optimizer.init), promoting(optimizer.update)
    )


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "lion": lambda: optax.lion(1e-3),
    "muon": lambda: optax.contrib.muon(1e-2),
    "adamw": lambda: optax.adamw(1e-2),
}


def three_of_four(params: Any) -> Any:
    """A mask that leaves out every fourth entry."""
    return jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape) % 4 != 0, params)


def bits(tree: Any) -> list[bytes]:
    """The bytes of every leaf of a tree or module."""
    leaves = jax.tree.leaves(nnx.state(tree) if isinstance(tree, nnx.Module) else tree)
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def stop_after(step: int) -> Callback:
    """A callback that asks to stop, as a machine that is taken away does."""

    def on_record(record: dict[str, Any]) -> None:
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return Callback(on_record=on_record)


def stopped_and_resumed(train: Callable[..., Fitted], folder: Path) -> tuple[Fitted, Fitted]:
    """A run of six updates in one go; and one that is stopped after the third, and goes on."""
    whole = train(folder=folder / "whole")
    stopped = train(folder=folder / "stopped", callbacks=[stop_after(2)])
    assert (whole.step, stopped.step) == (6, 3)
    return whole, train(folder=folder / "stopped", resume=True)


def losses(fitted: Fitted) -> list[float]:
    return [record["loss"] for record in fitted.records if "loss" in record]


def assert_same_run(whole: Fitted, resumed: Fitted) -> None:
    assert bits(resumed.params) == bits(whole.params)
    assert bits(resumed.opt_state) == bits(whole.opt_state)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize(
    ("name", "num_devices"),
    [("lion", 2), *(pytest.param(name, 8, marks=pytest.mark.slow) for name in OPTIMIZERS)],
)
def test_a_module_of_nnx_is_trained_sharded_and_resumed_to_the_same_bits(
    name: str, num_devices: int, tmp_path: Path
) -> None:
    model = Net()
    before = bits(model)
    inner = OPTIMIZERS[name]()
    # A mask that is drawn takes longer to compile than all the rest.
    masked = fixed_mask(inner, three_of_four) if num_devices == 2 else gmt(inner, 0.25)
    optimizer = with_standard_promotion(masked)
    layer = {"kernel": PartitionSpec("fsdp"), "bias": PartitionSpec()}
    train = partial(
        fit,
        model,
        mean_loss,
        optimizer,
        batch_of,
        6,
        mesh=make_mesh(data=num_devices // 4 or 1, devices=jax.devices()[:num_devices]),
        shardings={"layers": {0: layer, 1: layer}},
        num_microbatches=2,
        log_every=1,
        save_every=2,
    )
    whole, resumed = stopped_and_resumed(train, tmp_path)
    assert_same_run(whole, resumed)
    assert bits(model) == before, "the model that is given stays as it is"
    assert mean_loss(whole.params, batch_of(0)) < mean_loss(model, batch_of(0))
    assert all(0.2 < record["masked_fraction"] <= 0.25 for record in whole.records)
    kernel = whole.params.layers[0].kernel[...]
    assert kernel.sharding.spec == PartitionSpec("fsdp")
    moments = [leaf for leaf in jax.tree.leaves(whole.opt_state) if leaf.shape == (D, D)]
    assert moments
    assert all(leaf.sharding.is_equivalent_to(kernel.sharding, 2) for leaf in moments)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_our_decoder_is_trained_sharded_and_resumed_to_the_same_bits(
    name: str, tmp_path: Path, family: Callable[..., dict[str, Any]]
) -> None:
    config = ModelConfig.from_hf(family("llama"))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shardings = param_shardings(mesh, abstract_params(config), logical_axes(config))
    tokens = np.random.default_rng(0).integers(0, 96, (8, 17)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((8, 16), np.float32),
    }
    loaded: list[str] = []

    def load() -> Any:
        loaded.append("")
        return jax.device_put(init_params(config, jax.random.key(0)), shardings)

    train = partial(
        fit,
        abstract_params(config),
        Sft(config),
        with_standard_promotion(one_off(OPTIMIZERS[name](), 0.9)),
        lambda step: batch,
        6,
        load=load,
        mesh=mesh,
        shardings=shardings,
        log_every=1,
        save_every=2,
    )
    whole, resumed = stopped_and_resumed(train, tmp_path)
    assert_same_run(whole, resumed)
    assert len(loaded) == 2, "a run that goes on does not read the weights again"
    assert losses(whole)[-1] < losses(whole)[0]
    start = init_params(config, jax.random.key(0))
    moved = jax.tree.map(lambda a, b: np.mean(np.asarray(a) != np.asarray(b)), start, whole.params)
    # Not of the embeddings, most of which have no gradient.
    assert all(share <= 0.15 for share in jax.tree.leaves(moved["layers"]))


def linear(params: Any, batch: Any) -> jax.Array:
    """The mean squared error of a linear model."""
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["b"] - batch["y"]))


def start() -> dict[str, np.ndarray]:
    return {"w": np.eye(D, dtype=np.float32), "b": np.zeros((1, D), np.float32)}


SGD = optax.sgd(0.1)


@pytest.mark.slow
def test_a_module_of_equinox_is_trained_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    model = eqx.nn.MLP(D, D, 16, 1, key=jax.random.key(0))

    def loss(model: Any, batch: Any) -> jax.Array:
        return mean_loss(jax.vmap(model), batch)

    optimizer = with_standard_promotion(gmt(optax.adamw(1e-2), 0.25))
    train = partial(
        fit, model, loss, optimizer, batch_of, 6, mesh=make_mesh(), log_every=1, save_every=2
    )
    whole, resumed = stopped_and_resumed(train, tmp_path)
    assert bits(eqx.filter(resumed.params, eqx.is_array)) == bits(
        eqx.filter(whole.params, eqx.is_array)
    )
    assert losses(resumed) == losses(whole)
    assert loss(whole.params, batch_of(0)) < loss(model, batch_of(0))
    assert whole.params(jnp.ones(D)).shape == (D,)


@pytest.mark.parametrize("num_microbatches", [1, 4])
@pytest.mark.parametrize("form", ["mean", "sum"])
def test_the_loss_is_a_mean_over_all_microbatches(form: str, num_microbatches: int) -> None:
    """The first update against NumPy, with a weight for each row."""
    batch = batch_of(0) | {"weight": np.arange(16, dtype=np.float32) % 3}
    if form == "mean":
        batch["weight"][:] = 1 / 16

    def weighted(params: Any, batch: Any) -> Any:
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        total = jnp.sum(jnp.square(error) * batch["weight"][:, None])
        total = total if form == "sum" else total * num_microbatches
        return total, {"twice": 2 * total}

    fitted = fit(
        start(),
        weighted,
        SGD,
        [batch],
        weight=(lambda batch: batch["weight"].sum()) if form == "sum" else None,
        num_microbatches=num_microbatches,
        log_every=1,
    )
    weight = (batch["weight"] / batch["weight"].sum())[:, None]
    error = batch["x"] @ start()["w"] - batch["y"]
    expected = start()["w"] - 0.1 * 2 * batch["x"].T @ (error * weight)
    np.testing.assert_allclose(fitted.params["w"], expected, rtol=1e-5, atol=1e-6)
    (record,) = fitted.records
    assert record["loss"] == pytest.approx(np.sum(error**2 * weight), rel=1e-5)
    assert record["twice"] == pytest.approx(2 * record["loss"])
    assert record["loss_weight"] == (num_microbatches if form == "mean" else 15)


def test_callbacks_evaluate_and_save_in_the_form_that_was_given() -> None:
    calls: list[Any] = []
    model = Net()
    fitted = fit(
        model,
        mean_loss,
        SGD,
        batch_of,
        4,
        evaluate_every=2,
        callbacks=[
            Callback(
                on_record=lambda record: calls.append(sorted(record)[:1]),
                evaluate=lambda model, step: {"held_out": float(mean_loss(model, batch_of(99)))},
            ),
        ],
        learning_rate=optax.linear_schedule(1.0, 0.0, 4),
    )
    held_out = [record for record in fitted.records if "held_out" in record]
    assert [record["step"] for record in held_out] == [0, 2, 4]
    assert held_out[-1]["held_out"] < held_out[0]["held_out"]
    (trained,) = (record for record in fitted.records if "loss" in record)
    assert trained["learning_rate"] == 0.25
    assert trained["rows_per_s"] > 0
    assert len(calls) == 4


def test_parameters_keep_the_sharding_that_they_have(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec("rows"))
    params = start() | {"w": jax.device_put(start()["w"], sharding)}
    fitted = fit(params, linear, SGD, batch_of, 1, batch_sharding=PartitionSpec("rows"))
    assert fitted.params["w"].sharding == sharding
    assert fitted.params["b"].sharding.is_fully_replicated
    assert not params["w"].is_deleted()


def test_a_folder_is_neither_written_over_nor_taken(tmp_path: Path) -> None:
    train = partial(fit, start(), linear, SGD, batch_of, 2, log_every=1)
    fitted = train(folder=tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run; go on with it with resume=True"):
        train(folder=tmp_path / "run")
    again = train(folder=tmp_path / "run", resume=True)
    assert again.step == 2
    assert bits(again.params) == bits(fitted.params)
    assert again.records == fitted.records
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run"):
        train(folder=tmp_path, resume=True)


def test_a_script_may_change_its_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    move = Callback(on_start=lambda _: os.chdir(tmp_path / "elsewhere"))
    train = partial(fit, start(), linear, SGD, batch_of, folder="run", log_every=1)
    monkeypatch.chdir(tmp_path)
    assert len(train(steps=2, callbacks=[move]).records) == 2
    assert not list((tmp_path / "elsewhere").iterdir())
    os.chdir(tmp_path)
    assert len(train(steps=3, resume=True).records) == 3


def test_a_last_save_that_cannot_begin_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, places = checkpoint._start_saving, []

    def start_saving(place: str, parts: dict[str, Any]) -> Any:
        places.append(place)
        if len(places) < 3:
            raise OSError(28, "No space left on device", place)
        return begin(place, parts)

    monkeypatch.setattr("train.checkpoint._start_saving", start_saving)
    monkeypatch.setattr("train.loop._SAVE_AGAIN", 0)
    fit(start(), linear, SGD, batch_of, 2, folder=tmp_path / "run")
    assert (tmp_path / "run/checkpoints/2").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shardings": {"w": PartitionSpec("fsdp")}}, "the shardings are no prefix"),
        ({"shardings": PartitionSpec("fsdp")}, r"b \[1, 8\] cannot be split"),
        ({"steps": None}, "steps is needed"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    options = {"steps": 1, "mesh": make_mesh(fsdp=8), **options}
    with pytest.raises(UserError, match=message):
        fit(start(), linear, SGD, batch_of, **options)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.train import test_fit as t

def kill(record):
    if record["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

t.killable(Path(sys.argv[1]), callbacks=[t.Callback(on_record=kill)])
"""


def killable(folder: Path, **options: Any) -> Fitted:
    """Eight updates under a mask that lasts, sharded, with a save every other update."""
    optimizer = with_standard_promotion(one_off(optax.sgd(0.1, momentum=0.9), 0.5))
    options = {"mesh": make_mesh(), "log_every": 1, "save_every": 2, **options}
    return fit(start(), linear, optimizer, batch_of, 8, folder=folder, **options)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = killable(tmp_path / "whole")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", f"import tests.conftest\n{KILLED}", str(tmp_path / "killed")]
    assert subprocess.run(command, cwd=root).returncode == -signal.SIGKILL
    resumed = killable(tmp_path / "killed", resume=True)
    assert [record["step"] for record in resumed.records] == list(range(1, 9))
    assert_same_run(whole, resumed)
