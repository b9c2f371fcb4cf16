"""What a run's folder tells about it."""

from typing import Any

from train.observe.page.contents import (
    describe_machine,
    find_differences,
    find_examples,
    find_samples,
    summarise,
    weight_changes,
)


def test_a_summary(make_run: Any) -> None:
    run = make_run(optimizer={"mask": {"kind": "gmt", "mask_ratio": 0.3}})
    lines = summarise(run.config(), run.records)
    assert lines["mask"] == "kind: gmt, mask_ratio: 0.3"
    assert lines["updates"] == "6"
    assert lines["eval loss"] == "2.0000 → 1.4000"
    assert lines["tokens/s (median)"] == "100"
    assert describe_machine(run.records) == "jax 0.1.2"


def test_settings_that_differ(make_run: Any) -> None:
    runs = [make_run(), make_run("second", seed=3, optimizer={"learning_rate": 2e-5})]
    rows = dict(find_differences([run.config() for run in runs]))
    assert rows == {"seed": ["0", "3"], "optimizer.learning_rate": ["1e-05", "2e-05"]}


def test_samples_before_and_after(make_run: Any) -> None:
    (sample,) = find_samples(make_run())
    assert sample.prompt == "say & do"
    assert [label for label, _ in sample.texts] == ["before training", "after 6 updates"]
    assert sample.texts[0][1] == "old <words>"


def test_what_is_not_there_is_left_out_with_its_reason(make_run: Any) -> None:
    run = make_run()
    assert weight_changes(run, run.config()) == ([], "the run has no export yet")
    run.export.mkdir()
    changes, reason = weight_changes(run, run.config())
    assert (changes, "no such folder" in reason) == ([], True)
    assert find_examples(run, run.config(), 3) == []
