"""A trace has the updates that were asked for, and never stops a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.fit import Callback, fit
from train.observe.profile import Profile


def _train(profile: Profile, steps: int) -> None:
    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.square(batch["x"] @ params["w"]))

    fit(
        {"w": jnp.ones(2)},
        loss,
        optax.sgd(0.1),
        lambda step: {"x": np.ones((8, 2), np.float32)},
        steps,
        callbacks=[Callback(before_update=profile.before_update, on_end=profile.stop)],
    )


def _traced(folder: Path) -> list[int]:
    """The numbers of the updates in the only trace of a folder, by jax's reader."""
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    steps = [dict(event.stats) for event in events if event.name == "train"]
    return sorted({int(step["step_num"]) for step in steps})


@pytest.mark.parametrize(("steps", "traced"), [(8, [3, 4]), (5, [3, 4]), (4, [3])])
def test_the_updates_that_were_asked_for_are_traced(
    tmp_path: Path, steps: int, traced: list[int]
) -> None:
    lines: list[str] = []
    _train(Profile(tmp_path, 3, 2, lines.append), steps)
    assert _traced(tmp_path) == traced
    (line,) = lines
    assert f"xprof --logdir {tmp_path}" in line


@pytest.mark.parametrize("start", [None, 9])
def test_without_its_time_there_is_none(tmp_path: Path, start: int | None) -> None:
    _train(Profile(tmp_path, start, 2, pytest.fail), 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_does_not_stop_a_run(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> Callable[..., Any]:
        raise RuntimeError("no\nspace")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, name, fail)
    _train(Profile(tmp_path, 1, 2, pytest.fail), 4)
    assert "profile: no space; the run goes on without a trace" in capsys.readouterr().err
