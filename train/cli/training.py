"""Commands that start from a config: sft, plan, data check."""

import argparse
from pathlib import Path

from .parser import Commands, add, group
from .processes import add_place, joined_as_told


def _sft(args: argparse.Namespace) -> None:
    from ..config import load_config

    config = load_config(args.config, args.overrides)
    with joined_as_told(args) as console:
        from ..sft import sft

        sft(config, resume=args.resume, console=console)


def _plan(args: argparse.Namespace) -> None:
    from ..config import load_config

    config = load_config(args.config, args.overrides)
    from rich.console import Console

    from ..errors import UserError
    from ..plan.plan import CompiledStep, plan_step
    from ..plan.report import advice, print_plan, summary

    console = Console()

    def show(step: CompiledStep) -> None:
        console.print(summary(step), highlight=False, markup=False, soft_wrap=True)

    plan = plan_step(
        config,
        args.topology,
        slices=args.slices,
        plain=args.plain,
        explore=args.search,
        on_compiled=show,
    )
    print_plan(plan, console)
    if plan.given.fits is False:
        raise UserError(advice(plan))


def _data_check(args: argparse.Namespace) -> None:
    from ..config import load_config

    config = load_config(args.config, args.overrides)
    from rich.console import Console

    from ..data.check import check

    check(config, Console(), args.examples)


def _add_config(made: argparse.ArgumentParser) -> None:
    made.add_argument("--config", type=Path, required=True, help="a YAML file, as in configs/")
    made.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings laid over the file's"
    )


def _add_runs(commands: Commands) -> None:
    made = add(
        commands,
        "sft",
        _sft,
        "Supervised fine-tuning from a config.",
        "gmt-train sft --config configs/quickstart.yaml steps=20 optimizer.mask.mask_ratio=0.5",
    )
    _add_config(made)
    made.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the config's folder from its newest checkpoint, if there is one",
    )
    add_place(made)


def _add_plan(commands: Commands) -> None:
    made = add(
        commands,
        "plan",
        _plan,
        "Compile a config's train step, without weights or data, and say what it needs.",
        "gmt-train plan --config configs/paper-general-llama-2-7b.yaml --topology v5e:4x4 "
        "model.path=configs/models/llama-2-7b",
    )
    _add_config(made)
    made.add_argument(
        "--topology",
        help="a TPU slice, which need not be there: v5e:4x4, v6e:8x8, v5p:4x4x4 "
        "(default: the devices here)",
    )
    made.add_argument("--slices", type=int, default=1, help="how many such slices (default: 1)")
    made.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile other microbatches too, until the largest that fits is known",
    )
    made.add_argument(
        "--plain",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile it without the mask too, so that the difference is what the mask costs",
    )


def _add_data(commands: Commands) -> None:
    made = add(
        commands,
        "check",
        _data_check,
        "Report on a config's data before it is trained on; the exit status is 2 where something "
        "would make training wrong.",
        "gmt-train data check --config configs/quickstart.yaml",
    )
    _add_config(made)
    made.add_argument(
        "--examples", type=int, default=3, help="how many are shown, with what is learned of them"
    )


def declare(commands: Commands) -> None:
    """Adds them to the program's."""
    _add_runs(commands)
    _add_plan(commands)
    _add_data(group(commands, "data", "Look at data."))
