"""Commands on a config: init writes one, config explains it; sft, dpo, plan and data check take
one."""

import argparse
from pathlib import Path

from .parser import Commands, add_command, add_group, local_path
from .processes import add_process_options, join_processes


def add_training_commands(commands: Commands) -> None:
    """Adds this module's commands to the program's."""
    _add_init(commands)
    _add_sft(commands)
    _add_dpo(commands)
    _add_plan(commands)
    _add_data_check(add_group(commands, "data", "Inspect training data."))
    _add_config(commands)


def _add_init(commands: Commands) -> None:
    parser = add_command(
        commands,
        "init",
        _init,
        "Write a commented config for a model, the data and this machine.",
        "gmt-train init my.yaml --model HuggingFaceTB/SmolLM2-135M-Instruct --data my.jsonl",
    )
    parser.add_argument("file", type=local_path, help="the YAML file to write")
    parser.add_argument("--model", required=True, help="a model folder or a hub name")
    parser.add_argument("--data", required=True, help="files, a folder or a hub data set")
    _add_settings(parser, "settings that replace what would be written")


def _init(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ..data.starter import write_starter

    config = write_starter(args.file, args.model, args.data, args.overrides, Console(stderr=True))
    command = "dpo" if config.objective.is_preference else "sft"
    print(
        f"wrote {args.file}; look at the data with gmt-train data check --config {args.file}, and "
        f"train with gmt-train {command} --config {args.file}: the tuned model will be in "
        f"{Path(config.run) / 'export'}"
    )


def _add_sft(commands: Commands) -> None:
    parser = add_command(
        commands,
        "sft",
        _sft,
        "Supervised fine-tuning from a config.",
        "gmt-train sft --config configs/quickstart.yaml steps=20 optimizer.mask.mask_ratio=0.5\n"
        "  gmt-train sft model.path=models/base data.train=my.jsonl run=runs/mine",
    )
    _add_run_arguments(parser)


def _add_dpo(commands: Commands) -> None:
    parser = add_command(
        commands,
        "dpo",
        _dpo,
        "Learning from preference pairs, by DPO or another loss that the config's objective names.",
        "gmt-train dpo --config configs/dpo-quickstart.yaml objective.beta=0.2\n"
        "  gmt-train dpo model.path=runs/sft/export data.train=pairs.jsonl objective.kind=dpo "
        "run=runs/dpo",
    )
    _add_run_arguments(parser)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    _add_config_arguments(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the config's folder from its newest checkpoint, if there is one",
    )
    add_process_options(parser)


def _sft(args: argparse.Namespace) -> int:
    return _run(args, pairs=False)


def _dpo(args: argparse.Namespace) -> int:
    return _run(args, pairs=True)


def _run(args: argparse.Namespace, pairs: bool) -> int:
    from ..config import load_config
    from ..distributed.preemption import RESUME_STATUS
    from ..errors import UserError

    config = load_config(args.config, args.overrides)
    if config.objective.is_preference != pairs:
        kinds = "dpo, robust_dpo, hinge, ipo, simpo or orpo" if pairs else "sft"
        raise UserError(
            f"objective.kind is {config.objective.kind}; set it to {kinds}, or run "
            f"gmt-train {'sft' if pairs else 'dpo'}"
        )
    with join_processes(args) as console:
        from ..sft import sft

        run = sft(config, resume=args.resume, console=console)
    return RESUME_STATUS if run.stopped else 0


def _add_plan(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        _plan,
        "Compile a config's train step, without weights or data, and report what it needs.",
        "gmt-train plan --config configs/paper-general-llama-2-7b.yaml --topology v5e:4x4 "
        "model.path=configs/models/llama-2-7b",
    )
    _add_config_arguments(parser)
    parser.add_argument(
        "--topology",
        help="a TPU slice, which need not exist here: v5e:4x4, v6e:8x8, v5p:4x4x4 "
        "(default: the devices here)",
    )
    parser.add_argument("--slices", type=int, default=1, help="number of slices (default: 1)")
    parser.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile other microbatches too, until the largest that fits is known",
    )
    parser.add_argument(
        "--plain",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the step without the mask too: the difference is the mask's cost",
    )


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


def _add_data_check(commands: Commands) -> None:
    parser = add_command(
        commands,
        "check",
        _data_check,
        "Report on a config's data before training on it; the exit status is 2 if something would "
        "make training wrong.",
        "gmt-train data check --config configs/quickstart.yaml",
    )
    _add_config_arguments(parser)
    parser.add_argument(
        "--examples",
        type=int,
        default=3,
        help="number of examples to show, with the tokens that are trained on (default: 3)",
    )


def _data_check(args: argparse.Namespace) -> None:
    from ..config import load_config

    config = load_config(args.config, args.overrides)
    from rich.console import Console

    from ..data.check import check

    check(config, Console(), args.examples)


def _add_config(commands: Commands) -> None:
    parser = add_command(
        commands,
        "config",
        _config,
        "Print every key of a config with its type, default and meaning, as in docs/config.md.",
        "gmt-train config --schema > gmt-train.schema.json",
    )
    parser.add_argument(
        "--schema", action="store_true", help="print a JSON schema instead, for editors"
    )


def _config(args: argparse.Namespace) -> None:
    from ..config.reference import json_schema, reference

    print(json_schema() if args.schema else reference(), end="")


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=local_path,
        help="a YAML file; one in configs/ may be the program's own (default: the settings alone)",
    )
    _add_settings(parser, "settings that replace or extend the file's")


def _add_settings(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help=help)
