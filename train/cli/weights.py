"""Commands on a base and a tuned model: delta, merge."""

import argparse
from pathlib import Path

from .parser import Commands, add, group


def _delta_extract(args: argparse.Namespace) -> None:
    from ..hf import delta
    from ..hf.hub import resolve_model

    contents = delta.extract(resolve_model(args.base), resolve_model(args.tuned), args.out)
    changed, density = contents.num_changed, contents.density
    print(f"wrote {args.out}: {changed:,} entries, {density:.4%} of the model's")


def _delta_apply(args: argparse.Namespace) -> None:
    from ..hf import delta
    from ..hf.hub import resolve_model

    delta.apply(resolve_model(args.base), args.delta, args.out)
    print(f"wrote {args.out}")


def _delta_info(args: argparse.Namespace) -> None:
    from ..hf import delta

    print(delta.describe(args.file))


def _merge_dare(args: argparse.Namespace) -> None:
    from ..hf import merge
    from ..hf.hub import resolve_model

    base, tuned = resolve_model(args.base), resolve_model(args.tuned)
    merge.dare(base, tuned, args.out, args.drop_rate, args.seed)
    print(f"wrote {args.out}")


def _merge_interpolate(args: argparse.Namespace) -> None:
    from ..hf import merge
    from ..hf.hub import resolve_model

    merge.interpolate(resolve_model(args.base), resolve_model(args.tuned), args.out, args.weight)
    print(f"wrote {args.out}")


def _add_base_and_tuned(made: argparse.ArgumentParser) -> None:
    made.add_argument("--base", required=True, help="a model folder or a hub name")
    made.add_argument("--tuned", required=True, help="the same, of the same shapes and types")
    made.add_argument("--out", type=Path, required=True, help="what to write")


def _add_delta(commands: Commands) -> None:
    made = add(
        commands,
        "extract",
        _delta_extract,
        "Write the entries in which a tuned model differs from its base.",
        "gmt-train delta extract --base models/base --tuned models/tuned --out tuned.delta",
    )
    _add_base_and_tuned(made)

    made = add(
        commands,
        "apply",
        _delta_apply,
        "Write a tuned model's folder, bit for bit, from its base and a delta.",
        "gmt-train delta apply --base models/base --delta tuned.delta --out models/tuned",
    )
    made.add_argument("--base", required=True, help="the model from which the delta was extracted")
    made.add_argument("--delta", type=Path, required=True, help="the file")
    made.add_argument("--out", type=Path, required=True, help="the folder to write")

    made = add(
        commands,
        "info",
        _delta_info,
        "Say what a delta holds.",
        "gmt-train delta info tuned.delta",
    )
    made.add_argument("file", type=Path)


def _add_merge(commands: Commands) -> None:
    made = add(
        commands,
        "dare",
        _merge_dare,
        "Drop a random part of the changes and rescale the rest (DARE).",
        "gmt-train merge dare --base models/base --tuned models/tuned --drop-rate 0.9 "
        "--out models/merged",
    )
    _add_base_and_tuned(made)
    made.add_argument("--drop-rate", type=float, required=True, help="in [0, 1)")
    made.add_argument("--seed", type=int, default=0)

    made = add(
        commands,
        "interpolate",
        _merge_interpolate,
        "Go a part of the way from the base to the tuned model.",
        "gmt-train merge interpolate --base models/base --tuned models/tuned --weight 0.5 "
        "--out models/merged",
    )
    _add_base_and_tuned(made)
    made.add_argument("--weight", type=float, required=True, help="0: the base; 1: the tuned model")


def declare(commands: Commands) -> None:
    """Adds them to the program's."""
    _add_delta(group(commands, "delta", "A tuned model as its base and the entries that changed."))
    _add_merge(group(commands, "merge", "A new model from a base and a tuned one."))
