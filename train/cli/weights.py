"""Commands on a base and a tuned model: delta, merge."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .parser import Commands, add_command, add_group, place

if TYPE_CHECKING:
    from ..hf.compare import Tuned


def add_weight_commands(commands: Commands) -> None:
    """Adds this module's commands to the program's."""
    delta = add_group(commands, "delta", "A tuned model as its base and the entries that changed.")
    _add_delta_extract(delta)
    _add_delta_apply(delta)
    _add_delta_info(delta)
    _add_delta_shira(delta)
    merge = add_group(commands, "merge", "A new model from a base and a tuned one.")
    _add_merge_dare(merge)
    _add_merge_interpolate(merge)


def _add_delta_extract(commands: Commands) -> None:
    parser = add_command(
        commands,
        "extract",
        _delta_extract,
        "Write the entries in which a tuned model, or a run's newest weights, differ from a base.",
        "gmt-train delta extract --base models/base --tuned models/tuned --out tuned.delta",
    )
    tuned = "a model with the base's shapes and dtypes, or a run's folder"
    _add_models(parser, out="the file to write", tuned=tuned)


def _delta_extract(args: argparse.Namespace) -> None:
    from ..buckets.fetch import destination
    from ..buckets.workplace import reading
    from ..hf import delta
    from ..hf.hub import resolve_model
    from ..run import Run

    base = resolve_model(args.base)
    with reading(args.tuned) as tuned, destination(args.out) as out:
        if Run(Path(tuned)).config_file.is_file():
            from ..restore import extract_run

            contents = extract_run(Path(tuned), base, out)
        else:
            contents = delta.extract(base, resolve_model(tuned), out)
    changed, density = contents.num_changed, contents.density
    print(f"wrote {args.out}: {changed:,} entries, {density:.4%} of the model's")


def _add_delta_apply(commands: Commands) -> None:
    parser = add_command(
        commands,
        "apply",
        _delta_apply,
        "Write a tuned model's folder, bit for bit, from its base and a delta.",
        "gmt-train delta apply --base models/base --delta tuned.delta --out models/tuned",
    )
    parser.add_argument("--base", required=True, help="the model the delta was extracted against")
    parser.add_argument(
        "--delta", type=place, required=True, help="the delta's file or its address"
    )
    parser.add_argument("--out", type=place, required=True, help="the folder or address to write")


def _delta_apply(args: argparse.Namespace) -> None:
    from ..buckets.fetch import destination, fetch
    from ..hf import delta
    from ..hf.hub import resolve_model

    with destination(args.out) as out:
        delta.apply(resolve_model(args.base), fetch(str(args.delta)), out)
    print(f"wrote {args.out}")


def _add_delta_info(commands: Commands) -> None:
    parser = add_command(
        commands,
        "info",
        _delta_info,
        "Print what a delta contains.",
        "gmt-train delta info tuned.delta",
    )
    parser.add_argument("file", type=place, help="the delta's file or its address")


def _delta_info(args: argparse.Namespace) -> None:
    from ..buckets.fetch import fetch
    from ..hf import delta

    print(delta.describe(fetch(str(args.file))))


def _add_delta_shira(commands: Commands) -> None:
    parser = add_command(
        commands,
        "shira",
        _delta_shira,
        "Write what changed in the layers' matrices as an adapter that PEFT loads (SHiRA).",
        "gmt-train delta shira --base models/base --tuned runs/mine --out models/adapter",
    )
    tuned = "a model with the base's shapes and dtypes, or a run's folder"
    _add_models(parser, out="the folder to write", tuned=tuned)


def _delta_shira(args: argparse.Namespace) -> None:
    from ..hf.hub import resolve_model
    from ..hf.shira import export_shira

    base = resolve_model(args.base)
    with _open_tuned(args.tuned, base) as tuned:
        written = export_shira(base, args.base, tuned, args.out)
    print(
        f"wrote {args.out}: {written.num_changed:,} entries, filled up to {written.num_stored:,} "
        f"(r {written.r})"
    )


@contextmanager
def _open_tuned(name: str, base: Path) -> Iterator["Tuned"]:
    from ..hf.compare import open_tuned
    from ..hf.hub import resolve_model
    from ..run import Run

    if Run(Path(name)).config_file.is_file():
        from ..restore import tuned_by_run

        yield tuned_by_run(Path(name), base)
    else:
        with open_tuned(resolve_model(name)) as tuned:
            yield tuned


def _add_merge_dare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "dare",
        _merge_dare,
        "Drop a random part of the changes and rescale the rest (DARE).",
        "gmt-train merge dare --base models/base --tuned models/tuned --drop-rate 0.9 "
        "--out models/merged",
    )
    _add_models(parser, out="the folder to write")
    parser.add_argument(
        "--drop-rate", type=float, required=True, help="the share of changes to drop, in [0, 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the drops (default: 0)")


def _merge_dare(args: argparse.Namespace) -> None:
    from ..buckets.fetch import destination
    from ..hf import merge
    from ..hf.hub import resolve_model

    base, tuned = resolve_model(args.base), resolve_model(args.tuned)
    with destination(args.out) as out:
        merge.dare(base, tuned, out, args.drop_rate, args.seed)
    print(f"wrote {args.out}")


def _add_merge_interpolate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "interpolate",
        _merge_interpolate,
        "Go a part of the way from the base to the tuned model.",
        "gmt-train merge interpolate --base models/base --tuned models/tuned --weight 0.5 "
        "--out models/merged",
    )
    _add_models(parser, out="the folder to write")
    parser.add_argument(
        "--weight", type=float, required=True, help="0: the base; 1: the tuned model"
    )


def _merge_interpolate(args: argparse.Namespace) -> None:
    from ..buckets.fetch import destination
    from ..hf import merge
    from ..hf.hub import resolve_model

    base, tuned = resolve_model(args.base), resolve_model(args.tuned)
    with destination(args.out) as out:
        merge.interpolate(base, tuned, out, args.weight)
    print(f"wrote {args.out}")


def _add_models(
    parser: argparse.ArgumentParser,
    out: str,
    tuned: str = "a model with the base's shapes and dtypes",
) -> None:
    parser.add_argument("--base", required=True, help="a model folder, its address or a hub name")
    parser.add_argument("--tuned", required=True, help=tuned)
    parser.add_argument("--out", type=place, required=True, help=out)
