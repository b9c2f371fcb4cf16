"""What is taken back of the changes, and the losses after it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from train.config import load_config
from train.delta_drop import SHARES, delta_drop, smallest, take_back
from train.errors import UserError
from train.observe.page import write_report
from train.run import Run
from train.sft import sft

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_smallest_changes_of_each_tensor_are_taken_back(share: float) -> None:
    rng = np.random.default_rng(0)
    base = {"embed": rng.standard_normal(7), "layers": {"w": rng.standard_normal((2, 3, 4))}}
    changes = {"embed": rng.standard_normal(7), "layers": {"w": rng.standard_normal((2, 3, 4))}}
    changes["embed"][[1, 4]] = 0  # Unchanged: no share of them is taken.
    tuned = {
        "embed": base["embed"] + changes["embed"],
        "layers": {"w": base["layers"]["w"] + changes["layers"]["w"]},
    }
    found = take_back(base, tuned, share, smallest)
    pairs = [(base["embed"], tuned["embed"], found["embed"])]
    pairs += zip(*(tree["layers"]["w"] for tree in (base, tuned, found)), strict=True)
    for before, after, result in pairs:
        sizes = np.sort(np.abs(after - before)[after != before])
        count = round(share * sizes.size)
        is_back = np.abs(after - before) < (sizes[count] if count < sizes.size else np.inf)
        np.testing.assert_array_equal(result, np.where(is_back, before, after))


@pytest.mark.slow
def test_the_losses_of_a_run(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(write_config(), ["export_dtype=float32"])
    run = sft(config, console=Console(quiet=True))
    evaluated = [record["eval_loss"] for record in run.records if "eval_loss" in record]
    rows = delta_drop(run, Console(quiet=True))
    assert [row["dropped"] for row in rows] == list(SHARES)
    for kind in ("smallest_eval_loss", "random_eval_loss"):
        assert rows[0][kind] == pytest.approx(evaluated[-1], rel=1e-6)
        assert rows[-1][kind] == pytest.approx(evaluated[0], rel=1e-6)
    # The large changes do most of the work.
    assert rows[2]["smallest_eval_loss"] < rows[2]["random_eval_loss"]
    write_report([run.folder], tmp_path / "page.html", 0, [rows])
    assert "What the result needs of the changes" in (tmp_path / "page.html").read_text()


def test_a_run_without_an_export_has_no_changes(write_config: Callable[..., Path]) -> None:
    file = write_config()
    folder = Path(load_config(file).run)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(file.read_text())
    with pytest.raises(UserError, match="has no export yet"):
        delta_drop(Run(folder), Console(quiet=True))
