"""The command line: python -m train COMMAND, also installed as gmt-train."""

import argparse
import os
import sys
from collections.abc import Sequence

from .cli import models
from .cli import training as runs
from .cli import weights as pairs
from .errors import UserError, show

# Packages of the extra; without them the program says what to install.
EXTRA = {
    "datasets", "flax", "gguf", "grain", "huggingface_hub", "numpy", "orbax", "pydantic", "rich",
    "safetensors", "tokenizers", "transformers", "yaml",
}  # fmt: skip
INSTALL = 'pip install "gmt-jax[train]"'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gmt-train",
        description="Fine-tune causal language models with Gradient-Mask Tuning.",
        epilog=f"The commands need more packages: {INSTALL}",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for room in (runs, models, pairs):
        room.declare(commands)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings may stand anywhere among the options: argparse itself takes one run of them."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [each for each in rest if each.startswith("-") or "overrides" not in args]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, or 2 after a fault that the user can mend."""
    args = _parse(argv)
    # transformers serves configs and tokenizers here: that it finds no PyTorch is no news.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        args.do(args)
    except UserError as error:
        show(error)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        print(
            f"gmt-train: error: the package {package} is missing; "
            f"install the program's extra: {INSTALL}",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
