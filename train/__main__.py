"""The command line: python -m train COMMAND, also installed as gmt-train."""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Sequence

from .cli.generation import add_generation_commands
from .cli.models import add_model_commands
from .cli.parser import parse
from .cli.printing import safe_printing
from .cli.runs import add_run_commands
from .cli.training import add_training_commands
from .cli.weights import add_weight_commands
from .errors import UserError, show

INSTALL = 'pip install "gmt-jax[train]"'
INSTALL_GGUF = 'pip install "gmt-jax[train,gguf]"'
INSTALL_EVALUATE = 'pip install "gmt-jax[train,evaluate]"'
# Packages that few commands need.
INSTALLS = {"gguf": INSTALL_GGUF, "lm_eval": INSTALL_EVALUATE}
# Where nothing can be written: what a command writes names its place, and packages do not.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# The extras' packages, by the names they are imported under.
PACKAGES = {
    "datasets", "flax", "gguf", "grain", "huggingface_hub", "jinja2", "lm_eval", "orbax",
    "pydantic", "rich", "safetensors", "tokenizers", "transformers", "yaml",
}  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="gmt-train",
        description="Fine-tune causal language models with Gradient-Mask Tuning.",
        epilog=f"The commands need the packages of the extra: {INSTALL}",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_training_commands(commands)
    add_model_commands(commands)
    add_generation_commands(commands)
    add_weight_commands(commands)
    add_run_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    It is 0, 2 after an error that the user can mend, and 75 for a run that was stopped by a signal
    and can be resumed.
    """
    with safe_printing() as printing:
        args = parse(make_parser(), argv)
        printing.goes_on = "resume" in args
        return _execute(args)


def _execute(args: argparse.Namespace) -> int:
    # transformers reads configs and tokenizers here: it needs no PyTorch, and need not advise it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # A save that fails leaves coroutines of orbax's that had not begun; the failure is reported.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    from .distributed.preemption import RESUME_STATUS, StoppedError, stop_on_signals

    try:
        with stop_on_signals():
            status: int = args.execute(args) or 0
            sys.stdout.flush()
            return status
    except StoppedError as stop:
        resumable = "resume" in args
        advice = "; go on with --resume" if resumable else ""
        show(UserError(f"{stop}{advice}"))
        return RESUME_STATUS if resumable else 128 + stop.number
    except UserError as error:
        show(error)
    except OSError as error:
        if error.errno not in FULL and "usable temporary directory" not in str(error):
            raise
        show(UserError(f"{error}; make room there, or set TMPDIR for temporary files"))
    except RuntimeError as error:
        if "determine home directory" not in str(error):  # Of a package that has files there.
            raise
        show(UserError("this user has no home folder; set HOME to a folder"))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        install = INSTALLS.get(package, INSTALL)
        show(UserError(f"the package {package} is not installed; install the extra: {install}"))
    return 2


if __name__ == "__main__":
    sys.exit(main())
