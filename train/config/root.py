"""A run's config: its YAML read and checked, every key declared, bounded and explained."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ..errors import UserError
from .base import Count, Section
from .data import DataSection
from .faults import explain
from .optimizer import OptimizerSection
from .renames import find_renamed
from .sections import (
    BatchSection,
    CheckpointSection,
    EvaluationSection,
    MeshSection,
    ModelSection,
)
from .yaml import lay_over, parse_yaml


class Config(Section):
    """One run."""

    run: str
    """The folder that holds everything the run writes."""
    model: ModelSection
    data: DataSection
    seed: int = Field(0, ge=0)
    """Fixes everything random: the same seed and devices give the same weights."""
    steps: Count | None = None
    """Updates in all; left out, epochs says it."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training data, where steps is left out."""
    mesh: MeshSection = MeshSection()
    batch: BatchSection = BatchSection()
    optimizer: OptimizerSection = OptimizerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log_every: Count = 10
    """Updates between records in metrics.jsonl and on the screen."""
    export_dtype: Literal["float32", "bfloat16"] | None = None
    """Write the tuned model to RUN/export at the end, in this dtype; null: do not."""
    cache: str = "~/.cache/gmt-jax"
    """The folder of tokenised data and compiled programs, which runs share; it may be deleted
    between runs."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.data.streaming and self.steps is None:
            raise ValueError("steps is missing: a stream has no epochs to count")
        return self


def load_config(file: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads and checks a config file, with `key.path=value` overrides laid over it.

    Raises:
      UserError: for a missing or malformed file, an unknown key (with the nearest one), or a
        value that is out of range, all of them in one line.
    """
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a config file with --config") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: must hold keys and values, such as those in configs/")
    for override in overrides:
        lay_over(tree, override)
    if renamed := find_renamed(tree):
        raise UserError(f"{file}: " + "; ".join(renamed))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{file}: " + "; ".join(explain(error, Config))) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def differing_keys(a: Config, b: Config, ignore: frozenset[str]) -> list[str]:
    """The dotted keys in which two configs differ, leaving out the named top-level keys."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                out |= flat(value, f"{prefix}{key}.")
            else:
                out[prefix + key] = value
        return out

    left, right = flat(a.model_dump(exclude=set(ignore))), flat(b.model_dump(exclude=set(ignore)))
    return [key for key in left | right if left.get(key) != right.get(key)]
