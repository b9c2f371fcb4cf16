"""The trackers' own packages, read back with their own readers."""

import importlib.util
import json
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train.errors import UserError
from train.observe.backends import PACKAGES, find_openings
from train.observe.trackers import TrackedRun, Trackers

# Warnings of these packages are their own affair.
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = {"seed": 1, "optimizer": {"learning_rate": 1e-5, "mask": {"kind": "gmt"}}, "run": "a|b"}
FACTS = {"git_revision": "0123abc with changes", "jax": "1"}
SAMPLES = [{"prompt": "say\nit", "completion": "it | is"}]


def _record(step: int) -> dict[str, Any]:
    tensors = {"grad_norm": {"a": [1.0, float(step)], "b": 3.0}}
    return {"step": step, "loss": 1 / step, "mask/overlap": 0.5, "tensors": tensors}


def _drive(name: str, folder: Path, begin: int, end: int) -> None:
    """What one process of a run logs: updates from `begin` on, up to `end`."""
    folder.mkdir(exist_ok=True)

    def run(done: int, run_id: str) -> TrackedRun:
        return TrackedRun(folder, "project", "my run", run_id, CONFIG, FACTS, done)

    trackers = Trackers(find_openings([name]), run)
    trackers.start(begin - 1, folder / "trackers.json")
    for step in range(begin, end + 1):
        trackers.log(_record(step))
    trackers.log_samples(end, SAMPLES)
    trackers.log({"step": end, "eval_task_loss": 7.0})
    trackers.stop()


def _twice(name: str, folder: Path) -> str:
    """A run whose first process got further than its last checkpoint; returns its id."""
    _drive(name, folder, 1, 4)
    _drive(name, folder, 3, 6)
    run_id: str = json.loads((folder / "trackers.json").read_text())["id"]
    return run_id


def test_tensorboard_shows_one_curve(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _twice("tensorboard", tmp_path / "run")
    read = EventAccumulator(str(tmp_path / "run/tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in read.Scalars("loss")][-1] == pytest.approx(1 / 6)
    assert [event.step for event in read.Scalars("eval_task_loss")] == [6]
    assert len(read.Scalars("mask/overlap")) == 6
    last = read.Histograms("tensors/grad_norm")[-1]
    assert (last.step, last.histogram_value.num, last.histogram_value.sum) == (6, 3, 10)
    (text,) = read.Tensors("config/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| optimizer.mask.kind | gmt |" in table
    assert r"| run | a\|b |" in table
    assert "| git_revision | 0123abc with changes |" in table
    samples = read.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert r"| say<br>it | it \| is |" in samples
    assert capfd.readouterr().err.count("warning: track") == 0


def test_a_full_disk_turns_tensorboard_off_and_nothing_else(tmp_path: Path) -> None:
    """With a limit on the size of files, as a disk that is full has none."""
    script = f"""
        import resource, signal, sys
        from pathlib import Path
        from tests.train.observe.test_backends import _drive
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        _drive("tensorboard", Path({str(tmp_path / "run")!r}), 1, 40)
        print("went on")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout == "went on\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert "tensorboard failed at step" in lines[0]
    assert "File too large" in lines[0]
    assert "tensorboard failed 3 times in a row" in lines[1]


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in PACKAGES.items():
        with pytest.raises(UserError, match=rf"{name} needs .*pip install {package}, .*\[track\]"):
            find_openings([name])
    assert find_openings([]) == {}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing in the user's own folders."""
    settings = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)


def _records_of_wandb(file: Path) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after seven bytes of W&B's; none has two pieces."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, block = 7, 32768
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        assert kind == 1
        yield data[place + 7 : place + 7 + length]
        place += 7 + length


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_continues_a_run_offline(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    run_id = _twice("wandb", tmp_path / "run")
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for _ in range(300):  # Its own process writes the last records, and then that it is done.
        last = [Record.FromString([b"", *_records_of_wandb(file)][-1]) for file in files]
        if all(record.WhichOneof("record_type") == "exit" for record in last):
            break
        time.sleep(0.1)
    losses: dict[int, float] = {}
    everything = b""
    for file in files:
        for data in _records_of_wandb(file):
            everything += data
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                assert record.run.run_id == run_id
            if record.WhichOneof("record_type") != "history":
                continue
            items = {i.key or "/".join(i.nested_key): i for i in record.history.item}
            found = {key: json.loads(item.value_json) for key, item in items.items()}
            if "loss" in found:
                assert found["_step"] not in losses
                losses[found["_step"]] = found["loss"]
    assert losses == {step: pytest.approx(1 / step) for step in range(1, 7)}
    for text in (b"eval_task_loss", b"tensors/grad_norm", b"0123abc", b"table-file"):
        assert text in everything
    for text in (b"k" * 40, socket.gethostname().encode(), b"test_backends"):
        assert text not in everything
    assert "warning: track" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_trackio_continues_a_run_in_a_local_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackio")
    # In processes of their own: the package reads its folder's name when it is imported.
    script = """
        import sys
        from pathlib import Path
        from tests.train.observe.test_backends import _drive
        _drive("trackio", Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(tmp_path / "run")]
    root = Path(__file__).parents[3]
    for steps in (["1", "4"], ["3", "6"]):
        done = subprocess.run([*command, *steps], capture_output=True, text=True, cwd=root)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "warning: track" not in done.stderr
    read = """
        import json, sys, trackio
        (run,) = trackio.Api().runs("project")
        logs = trackio.SQLiteStorage.get_logs("project", run.name)
        print(json.dumps([run.name, run.config, logs]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(read)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, config, logs = json.loads(done.stdout)
    assert name.startswith("my run-")
    assert config["optimizer"]["mask"]["kind"] == "gmt"
    assert config["facts"] == FACTS
    assert [log["step"] for log in logs if "loss" in log] == [1, 2, 3, 4, 5, 6]
    assert [log["step"] for log in logs if "tensors/grad_norm" in log] == [1, 2, 3, 4, 5, 6]
    assert "it | is" in str([log["samples"] for log in logs if "samples" in log])


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_mlflow_continues_a_run_in_a_local_database(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    _twice("mlflow", tmp_path / "run")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("project")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5, 6]
    assert run.data.metrics["eval_task_loss"] == 7.0
    assert run.data.params["optimizer.mask.kind"] == "gmt"
    assert run.data.tags["mlflow.source.git.commit"] == "0123abc"
    assert run.info.status == "FINISHED"
    table = json.loads(next(tmp_path.rglob("samples.json")).read_text())
    assert table["data"][0] == [4, "say\nit", "it | is"]
    assert "warning: track" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": ""}, "nobody is logged in"),
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": "k" * 40}, "wandb"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "mlflow"),
    ],
    ids=["wandb without a login", "wandb offline", "mlflow offline"],
)
@pytest.mark.usefixtures("offline")
def test_a_tracker_that_cannot_be_reached_does_not_stop_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variables: dict[str, str],
    message: str,
) -> None:
    pytest.importorskip(PACKAGES[name])
    more = {
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "HOME": str(tmp_path),
    }
    for key, value in {**more, **variables}.items():
        monkeypatch.setenv(key, value)
    script = f"""
        from pathlib import Path
        from tests.train.observe.test_backends import _drive
        _drive({name!r}, Path({str(tmp_path / "run")!r}), 1, 4)
        print("went on")
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, timeout=150, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "warning: track" in line]
    assert message in line
    assert "the run goes on without it" in line
    assert "k" * 40 not in done.stderr
