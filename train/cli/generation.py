"""Commands on what a model writes: generate, evaluate, lm-eval."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from .parser import Commands, add_command, place

if TYPE_CHECKING:
    from jax.sharding import Mesh


def add_generation_commands(commands: Commands) -> None:
    """Adds this module's commands to the program's."""
    _add_generate(commands)
    _add_evaluate(commands)
    _add_lm_eval(commands)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how a model computes."""
    parser.add_argument(
        "--batch-size", type=int, default=16, help="prompts computed together (default: 16)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="dtype of activations, products and the cache (default: float32)",
    )
    parser.add_argument(
        "--mesh",
        default="",
        help="devices along each axis, such as data=2,tensor=4; the rest are along fsdp",
    )


def parse_mesh(text: str) -> "Mesh":
    """The mesh that an option such as data=2,tensor=4 names.

    Raises:
      UserError: if it names none.
    """
    from pydantic import ValidationError

    from ..config.sections import MeshSection
    from ..errors import UserError
    from ..sharding import make_mesh

    sizes: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        sizes[axis.strip()] = size.strip()
    if "-1" in sizes.values():  # Then the rest of the devices is not along fsdp.
        sizes = {"fsdp": "1", **sizes}
    try:
        section = MeshSection(**sizes)
    except ValidationError as error:
        reason = error.errors()[0]
        raise UserError(
            f"--mesh: {'.'.join(map(str, reason['loc'])) or text}: {reason['msg']}; write such as "
            "data=2,tensor=4; axes are data, fsdp, context and tensor"
        ) from None
    return make_mesh(section.data, section.fsdp, section.tensor, section.context)


def _add_generate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "generate",
        _generate,
        "Complete prompts with a run's newest weights or a model's.",
        'gmt-train generate runs/quickstart "Write a function that adds two numbers."\n'
        "  gmt-train generate runs/quickstart --prompts mine.jsonl --out completions.jsonl",
    )
    parser.add_argument("model", help="a run, a model folder (such as an export), or a hub name")
    parser.add_argument("prompts", nargs="*", help="each becomes a user turn of the chat template")
    parser.add_argument(
        "--prompts",
        dest="file",
        metavar="FILE",
        help="records with a prompt (text or turns) or messages: .jsonl, .json, .csv, .parquet",
    )
    parser.add_argument(
        "--out", type=place, help="write the records with their completion to this JSONL file"
    )
    parser.add_argument("--raw", action="store_true", help="complete the text without a template")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="length of a completion (default: 128)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (the default)")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens with this share of the probability (default: 1)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="sample from so many likeliest tokens (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="STRING",
        help="end a completion before this text; may be given several times",
    )
    add_device_options(parser)


def _generate(args: argparse.Namespace) -> None:
    from ..buckets.fetch import optional_destination
    from ..buckets.workplace import reading
    from ..data.prompts import Prompt, read_prompts
    from ..errors import UserError, printable, warn
    from ..files import atomic_file, check_file
    from ..generate import Sampling
    from ..restore import complete_prompts

    records: list[tuple[dict[str, Any], Prompt]]
    records = [({"prompt": prompt}, prompt) for prompt in args.prompts]
    if bool(records) == bool(args.file):
        raise UserError("generate: give prompts, or a file of them by --prompts FILE")
    if args.file:
        records = read_prompts(args.file)
    with reading(args.model) as model, optional_destination(args.out) as out:
        if out is not None:
            check_file(out)
        completions = complete_prompts(
            model,
            [prompt for _, prompt in records],
            Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed, args.top_k),
            raw=args.raw,
            warn=warn,
            stop_strings=args.stop,
            batch_size=args.batch_size,
            dtype=args.dtype,
            mesh=parse_mesh(args.mesh),
        )
        lines = [
            json.dumps({**record, "completion": completion}, ensure_ascii=False)
            for (record, _), completion in zip(records, completions, strict=True)
        ]
        if out is not None:
            with atomic_file(out) as new:
                new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if args.out:
        print(f"wrote {args.out}")
    else:
        for completion in lines if args.file else completions:
            print(printable(completion))


def _add_evaluate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "Evaluate a run's newest weights or a model by tasks of lm-evaluation-harness.",
        "gmt-train evaluate runs/quickstart --tasks arc_easy,hellaswag --limit 200\n"
        "  gmt-train evaluate runs/quickstart --tasks configs/tasks/gsm8k.yaml --data "
        "train=train.jsonl --data test=test.jsonl",
    )
    parser.add_argument("model", help="a run, a model folder (such as an export), or a hub name")
    parser.add_argument(
        "--tasks", required=True, help="names (arc_easy,mmlu) or YAML files, joined by commas"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[TASK.]SPLIT=FILE",
        help="the data of a task's file; may be given several times",
    )
    parser.add_argument("--num-fewshot", type=int, help="examples (default: the task's own)")
    parser.add_argument("--limit", type=int, help="questions of each task (default: all)")
    parser.add_argument(
        "--chat", action="store_true", help="put prompts into the chat template's turns"
    )
    parser.add_argument(
        "--multiturn", action="store_true", help="with --chat: examples as turns of their own"
    )
    parser.add_argument("--system", help="with --chat: the system turn")
    parser.add_argument(
        "--run-code", action="store_true", help="run the model's code, in a sandbox"
    )
    parser.add_argument("--max-length", type=int, help="tokens read (default: all positions)")
    parser.add_argument("--seed", type=int, default=1234, help="seed (default: 1234)")
    parser.add_argument("--out", type=place, help="folder for results.json and every sample")
    add_device_options(parser)


def _evaluate(args: argparse.Namespace) -> None:
    from ..buckets.fetch import optional_destination
    from ..buckets.workplace import reading
    from ..errors import UserError, printable
    from ..evaluate.evaluation import Settings, evaluate, table
    from ..evaluate.tasks import parse_data

    for name in ("num_fewshot", "limit", "max_length"):
        value = getattr(args, name)
        if value is not None and value < (name != "num_fewshot"):
            raise UserError(f"--{name.replace('_', '-')}: {value} is too small")
    if args.system is not None and not args.chat:
        raise UserError("--system: is a turn of the chat template; add --chat")
    settings = Settings(
        args.num_fewshot,
        args.limit,
        args.chat,
        args.multiturn,
        args.system,
        args.run_code,
        args.seed,
    )
    with reading(args.model) as model, optional_destination(args.out) as out:
        results = evaluate(
            model,
            [name for name in args.tasks.split(",") if name],
            parse_data(args.data),
            settings,
            out,
            dtype=args.dtype,
            batch_size=args.batch_size,
            max_length=args.max_length,
            mesh=parse_mesh(args.mesh),
        )
    print(printable(table(results)))
    rate = results["tokens"] / max(results["seconds"], 1e-9)
    print(f"{results['tokens']:,} tokens in {results['seconds']:,} s, {rate:,.0f} tokens/s")
    if args.out:
        print(f"wrote {args.out}")


def _add_lm_eval(commands: Commands) -> None:
    parser = add_command(
        commands,
        "lm-eval",
        _lm_eval,
        "lm-evaluation-harness's own command line, which then knows the model gmt-train.",
        "gmt-train lm-eval run --model gmt-train --model_args pretrained=runs/quickstart "
        "--tasks arc_easy",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="lm-eval's own arguments")
    parser.set_defaults(help=parser.format_help())
    parser.prefix_chars = "\0"  # Options are lm-eval's, but for --help alone.


def _lm_eval(args: argparse.Namespace) -> None:
    import sys

    if args.arguments in ([], ["-h"], ["--help"]):
        print(args.help, end="")
        sys.exit(0)

    from lm_eval.__main__ import cli_evaluate

    from ..evaluate import backend, tasks  # noqa: F401 - Imported, they are known to lm-eval.

    sys.argv = ["lm-eval", *args.arguments]
    cli_evaluate()
