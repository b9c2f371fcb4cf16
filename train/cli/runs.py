"""Commands on what a run has on disk: report, verify, selftest."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .parser import Commands, add_command, local_path, place


def add_run_commands(commands: Commands) -> None:
    """Adds this module's commands to the program's."""
    _add_report(commands)
    _add_verify(commands)
    _add_selftest(commands)


def _add_report(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        _report,
        "Write one HTML file on one or several runs: curves, the mask, the weights' changes and "
        "completions. It needs no server and no network.",
        "gmt-train report runs/quickstart",
    )
    parser.add_argument("run", type=place, nargs="+", help="a run's folder or address")
    parser.add_argument(
        "--out", type=place, help="the file (default: report.html in the first run)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=3,
        metavar="N",
        help="training examples that are shown with what has a loss (default: 3)",
    )

    parser.add_argument(
        "--delta-drop",
        action="store_true",
        help="compute the loss after a growing share of the smallest, or of random, changes of the "
        "weights is dropped; it loads the model and evaluates 16 times",
    )


def _report(args: argparse.Namespace) -> None:
    from ..buckets.fetch import destination
    from ..buckets.mirror import shown
    from ..buckets.workplace import reading_run
    from ..errors import UserError
    from ..files import check_file

    try:
        from ..observe.page import write_report
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "bokeh":
            raise
        raise UserError('reports need bokeh; run: pip install "gmt-jax[report]"') from None

    with ExitStack() as stack:
        runs = [stack.enter_context(reading_run(run)) for run in args.run]
        out = stack.enter_context(destination(args.out or runs[0] / "report.html"))
        check_file(out)
        dropped = [_delta_drop(folder) for folder in runs] if args.delta_drop else []
        write_report(runs, out, args.examples, dropped)
        written = args.out or shown(out)
    print(f"wrote {written}")


def _delta_drop(folder: Path) -> list[dict[str, Any]]:
    from rich.console import Console

    from ..delta_drop import delta_drop
    from ..run import Run

    return delta_drop(Run.open(folder), Console(stderr=True))


def _add_verify(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        _verify,
        "Check every checkpoint, export and record of a run; the exit status is 2 if one is not "
        "whole.",
        "gmt-train verify runs/quickstart",
    )
    parser.add_argument("run", type=place, help="the run's folder or address")


def _verify(args: argparse.Namespace) -> int:
    from ..buckets.workplace import reading_run
    from ..errors import printable
    from ..verify import verify_run

    whole = True
    with reading_run(args.run) as run:
        for ok, line in verify_run(run):
            print(printable(line if ok else f"DAMAGED {line}"))
            whole &= ok
    return 0 if whole else 2


def _add_selftest(commands: Commands) -> None:
    parser = add_command(
        commands,
        "selftest",
        _selftest,
        "Prove on this machine that a run that is killed goes on to the same bits.",
        "gmt-train selftest",
    )
    parser.add_argument("--folder", type=local_path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)


def _selftest(args: argparse.Namespace) -> None:
    from ..verify import selftest, train_tiny

    print(selftest() if args.folder is None else train_tiny(args.folder, args.kill))
