"""A report is one file that a browser shows without a network."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main
from train.observe.page import write_report


def test_one_run(make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    assert main(["report", str(run.folder)]) == 0
    out = run.folder / "report.html"
    assert capsys.readouterr().out == f"wrote {out}\n"
    page = out.read_text(encoding="utf-8")
    assert out.stat().st_size < 2e6
    for text in ("gmt-train report: first", "2.0000 → 1.4000", "jax 0.1.2", "no export yet"):
        assert text in page
    assert "masked share: by layer, at update 6" in page
    assert "say &amp; do" in page
    assert "new &lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Settings that differ" not in page
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", page), "nothing is fetched"


def test_several_runs(make_run: Any, tmp_path: Path) -> None:
    runs = [make_run(), make_run("second", 0.5, seed=3)]
    write_report([run.folder for run in runs], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Settings that differ" in page
    assert "second: eval_loss" in page
    assert page.index("Completions: first") < page.index("Completions: second")


def test_runs_of_one_name_are_told_apart(make_run: Any, tmp_path: Path) -> None:
    runs = [make_run(name) for name in ("a/run", "b/run")]
    write_report([run.folder for run in runs], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert all(f"<th>{run.folder}</th>" in page for run in runs)


def test_what_is_no_run_is_refused(
    make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(run.folder), str(run.folder)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "is not a run" in first
    assert second.endswith("the same run is named twice; name each once")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="a browser is not installed")
def test_a_browser_draws_every_chart(make_run: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([make_run().folder, make_run("second", 0.5).folder], out)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    command = ["chromium", *options, "--dump-dom", out.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in errors if "setting log level" not in line]
    assert done.stdout.count("bk-Figure") >= 6
    assert "alert(1)" in done.stdout, "the text is shown"
