"""Trackers get what the records have, once, and never stop a run."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from train.observe import trackers as module
from train.observe.trackers import Sample, TrackedRun, Trackers


class Fake:
    """Remembers its calls; raises at the steps that it is told."""

    purges = False

    def __init__(self, run: TrackedRun, fails: Callable[[int], bool] = lambda step: False) -> None:
        self.run, self.calls, self._fails = run, list[Any](), fails

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._add(step, dict(figures))

    def log_values(self, step: int, name: str, values: Sequence[float]) -> None:
        self._add(step, (name, list(values)))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        self._add(step, [dict(sample) for sample in samples])

    def _add(self, step: int, call: Any) -> None:
        if self._fails(step):
            raise OSError(28, "No space left on device")
        self.calls.append((step, call))

    def close(self) -> None:
        self.calls.append("closed")


class Track:
    """Opens fakes, and drives them as a run does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.opened = folder, list[Fake]()

    def __call__(self, records: Sequence[Mapping[str, Any]], done: int = 0, **options: Any) -> Any:
        purges = options.pop("purges", False)

        def opening(run: TrackedRun) -> Fake:
            self.opened.append(Fake(run, **options))
            self.opened[-1].purges = purges
            return self.opened[-1]

        return self.drive({"fake": opening}, records, done)

    def drive(
        self, openings: Mapping[str, Any], records: Sequence[Mapping[str, Any]], done: int = 0
    ) -> list[Any]:
        def run(done: int, run_id: str) -> TrackedRun:
            return TrackedRun(self.folder, "project", "name", run_id, {}, {}, done)

        trackers = Trackers(openings, run)
        trackers.start(done, self.folder / "trackers.json")
        for record in records:
            trackers.log(record)
        trackers.stop()
        return self.opened[-1].calls if self.opened else []


@pytest.fixture
def track(tmp_path: Path) -> Track:
    return Track(tmp_path)


def test_records_become_points_and_histograms(track: Track) -> None:
    tensors = {"grad_norm": {"a": [1.0, 2.0], "b": 3.0}}
    calls = track(
        [
            {"step": 0, "eval_loss": 2.0, "examples": ["a.jsonl:1"]},
            {"step": 1, "loss": 1.5, "tensors": tensors},
            {"step": 2, "skipped": "loss nan", "examples": []},
        ]
    )
    assert calls == [
        (0, {"eval_loss": 2.0}),
        (1, {"loss": 1.5}),
        (1, ("tensors/grad_norm", [1.0, 2.0, 3.0])),
        (2, {"skipped": 1.0}),
        "closed",
    ]


def test_samples_are_sent_without_secrets(
    track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "abcdefgh1")
    trackers = Trackers(
        {"fake": lambda run: track.opened.append(Fake(run)) or track.opened[0]},
        lambda done, run_id: TrackedRun(tmp_path, "p", "n", run_id, {}, {}),
    )
    trackers.start(0, tmp_path / "trackers.json")
    trackers.log_samples(4, [{"prompt": "say abcdefgh1", "completion": "no"}])
    trackers.log_samples(5, [])
    trackers.stop()
    assert track.opened[0].calls == [(4, [{"prompt": "say ***", "completion": "no"}]), "closed"]


def _losses(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1.0 / step} for step in steps]


def test_a_resumed_run_sends_what_it_repeats_once(track: Track) -> None:
    assert track(_losses(1, 2, 3, 3))[:-1] == [
        (s["step"], {"loss": s["loss"]}) for s in _losses(1, 2, 3, 3)
    ]
    calls = track(_losses(2, 3, 3, 3, 4), done=1)
    assert [call[0] for call in calls[:-1]] == [3, 4]
    first, second = (fake.run for fake in track.opened)
    assert (first.resumed, second.resumed) == (False, True)
    assert first.id == second.id
    assert [call[0] for call in track(_losses(4, 5), done=3)[:-1]] == [5]


def test_a_tracker_that_purges_gets_it_again(track: Track) -> None:
    track(_losses(1, 2, 3), purges=True)
    assert len(track(_losses(2, 3, 4), done=1, purges=True)) == 4


def test_a_tracker_that_cannot_be_opened_is_reported(
    track: Track, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: TrackedRun) -> Any:
        raise SystemExit("no way\nin")

    track.drive({"a": fail}, _losses(1))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("track: a cannot be opened (no way in); the run goes on without it")


def test_a_tracker_that_fails_now_and_then_is_tried_again(
    track: Track, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = track(_losses(*range(1, 9)), fails=lambda step: step in (2, 4, 5))
    assert [call[0] for call in calls[:-1]] == [1, 3, 6, 7, 8]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "fake failed at step 2 ([Errno 28] No space left on device)" in lines[0]


def test_a_tracker_that_fails_always_gets_nothing_more(
    track: Track, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = track(_losses(*range(1, 9)), fails=lambda step: step > 1)
    assert calls == [(1, {"loss": 1.0}), "closed"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "failed 3 times in a row" in lines[1]


def test_a_tracker_that_hangs_is_left_alone(
    track: Track, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_OPEN_TIMEOUT", 0.1)
    monkeypatch.setattr(module, "_CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(module, "_MAX_WAITING", 5)
    never = threading.Event()
    track.drive({"slow": lambda run: never.wait(20) and Fake(run)}, _losses(1))
    assert "slow still sends after 0 s and is left alone" in capsys.readouterr().err
    track.drive({"slow": lambda run: never.wait(20) and Fake(run)}, _losses(*range(1, 9)))
    assert "slow has 5 messages waiting; the run goes on without it" in capsys.readouterr().err
    never.set()


@pytest.mark.parametrize("text", ["", "{", '{"id": "../x", "sent": {}}', '{"id": "a"}', "[]"])
def test_a_damaged_state_counts_as_none(track: Track, text: str) -> None:
    (track.folder / "trackers.json").write_text(text)
    assert len(track(_losses(1, 2))) == 3
    assert json.loads((track.folder / "trackers.json").read_text())["sent"] == {"fake": [2, 1]}


def test_a_state_that_cannot_be_written_stops_nothing(track: Track) -> None:
    (track.folder / ".trackers.json.new").mkdir()
    assert len(track(_losses(1, 2))) == 3
    assert not (track.folder / "trackers.json").exists()
