"""A run's config: all sections, and reading it from YAML."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ..errors import UserError
from ..files import shipped
from .base import Count, Place, Section
from .data import DataSection
from .faults import explain
from .lora import LoraSection
from .objectives import ObjectiveSection, Sft
from .optimizer import OptimizerSection
from .renames import find_renamed
from .sections import (
    BatchSection,
    CheckpointSection,
    EvaluationSection,
    MeshSection,
    ModelSection,
    ProfileSection,
)
from .yaml import apply_override, flatten, parse_yaml

# Config keys that may change when a run is resumed. None of them changes a weight, except the mesh,
# which changes the order in which sums are added.
RESUMABLE_KEYS = frozenset(
    {
        "run",
        "mesh",
        "evaluation",
        "checkpoint",
        "log_every",
        "max_skipped",
        "log_tensors",
        "profile",
        "track",
        "track_project",
        "export_dtype",
        "cache",
    }
)

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


def _as_tuple(given: Any) -> Any:
    """Puts a single name into a list; each counts once."""
    if given is None or isinstance(given, str):
        return (given,) if given else ()
    return tuple(dict.fromkeys(given)) if isinstance(given, list | tuple) else given


class Config(Section):
    """A run's own keys, beside its sections."""

    run: Place
    """The folder or address (gs://, s3://) of everything that the run writes."""
    model: ModelSection
    data: DataSection
    objective: ObjectiveSection = Sft()
    """What is minimised, by kind. `gmt-train sft` runs sft, `gmt-train dpo` the others, which are
    trained on preference pairs."""
    seed: int = Field(0, ge=0, lt=2**32)
    """The seed of everything random: the same seed and devices give the same weights."""
    steps: Count | None = None
    """The number of updates; null: as many as `epochs` needs."""
    epochs: float = Field(1.0, gt=0)
    """The number of passes over the training data, if steps is null."""
    mesh: MeshSection = MeshSection()
    batch: BatchSection = BatchSection()
    optimizer: OptimizerSection = OptimizerSection()
    lora: LoraSection | None = None
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    profile: ProfileSection = ProfileSection()
    max_skipped: Count = 3
    """Updates in a row whose loss or gradient is not finite, after which the run ends. Such an
    update changes neither weights nor optimizer state, and is recorded with its examples."""
    log_every: Count = 10
    """Updates between records in metrics.jsonl and lines on the screen."""
    log_tensors: bool = False
    """Record in tensors.jsonl, with each record at a multiple of log_every, the norms of gradient,
    weights and update of every tensor (of each layer), and the figures of the mask by tensor if
    optimizer.mask.report is true."""
    track: Annotated[tuple[TrackerName, ...], BeforeValidator(_as_tuple)] = ()
    """The trackers that get the records, beside metrics.jsonl: tensorboard, wandb, trackio or
    mlflow, one or several. What fails there never stops the run."""
    track_project: str = "gmt-train"
    """The project or experiment in which wandb, trackio and mlflow show the run."""
    export_dtype: Literal["float32", "bfloat16"] | None = None
    """The dtype in which the tuned model is written to RUN/export at the end; null: it is not."""
    cache: Place = "~/.cache/gmt-jax"
    """The folder or address of tokenised data and compiled programs, which runs share. It may be
    deleted between runs."""

    @model_validator(mode="before")
    @classmethod
    def _without_a_mask(cls, tree: Any) -> Any:
        """Adapters take the place of the mask that an optimizer has by default."""
        if isinstance(tree, dict) and tree.get("lora") is not None:
            optimizer = tree.get("optimizer") or {}
            if isinstance(optimizer, dict):
                return {**tree, "optimizer": {"mask": {"kind": "none"}, **optimizer}}
        return tree

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        kind = self.optimizer.mask.kind
        if self.lora is not None and kind != "none":
            raise ValueError(
                f"lora trains matrices of its own and takes no mask, and optimizer.mask.kind is "
                f"{kind}; remove optimizer.mask, or lora"
            )
        return self

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.data.streaming and self.steps is None:
            raise ValueError(
                "steps is required when data.streaming is true: a stream has no epochs"
            )
        return self

    @model_validator(mode="after")
    def _the_profile_is_reached(self) -> Self:
        start = self.profile.start
        if start is not None and self.steps is not None and start >= self.steps:
            raise ValueError(f"profile.start {start} is not before the last of {self.steps} steps")
        return self

    @model_validator(mode="after")
    def _the_best_is_measured(self) -> Self:
        metric = self.checkpoint.keep_best
        if metric is None and self.evaluation.patience is not None:
            raise ValueError(
                "evaluation.patience needs checkpoint.keep_best, the metric that is to improve, "
                "such as eval_loss"
            )
        if metric is not None and not self.data.is_evaluated and not self.evaluation.data:
            raise ValueError(f"checkpoint.keep_best {metric}: there is no evaluation data")
        return self

    @model_validator(mode="after")
    def _pairs_are_complete(self) -> Self:
        if not self.objective.is_preference:
            return self
        kind = self.objective.kind
        if self.data.streaming:
            raise ValueError(
                f"data.streaming is not for objective {kind}, whose pairs are indexed; set it to "
                "false"
            )
        if self.data.loss_on == "everything":
            raise ValueError(
                f"data.loss_on everything is not for objective {kind}, which compares answers; "
                "set it to assistant or last"
            )
        return self


def load_config(file: Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads and checks a config file, after `key.path=value` overrides of its settings.

    Args:
      file: a YAML file; one in `configs/` that does not exist here is the program's own. None: the
        settings are all there is.

    Raises:
      UserError: if the file is missing or malformed, a key is unknown (the nearest is named), or
        a value is out of range. All faults are in one line.
    """
    tree = {} if file is None else _read_file(file)
    for override in overrides:
        apply_override(tree, override)
    return make_config(tree, "settings" if file is None else str(file))


def make_config(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Checks a config's tree of keys and values.

    Args:
      source: where it is from, for messages.

    Raises:
      UserError: as `load_config` does.
    """
    if renamed := find_renamed(dict(tree)):
        raise UserError(f"{source}: " + "; ".join(renamed))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(explain(error, Config))) from None
    except (TypeError, RecursionError, OverflowError) as error:  # A key that is no text, for one.
        raise UserError(f"{source}: cannot be read as a config ({error})") from None


def _read_file(file: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(shipped(file).read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a config file with --config") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except ValueError as error:  # A NUL in the path.
        raise UserError(f"{str(file)!r}: {error}; name a config file with --config") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: must contain keys and values, as the files in configs/ do")
    return tree


def dump_config(config: Config) -> str:
    """Returns the config as YAML, with every default."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def differing_keys(a: Config, b: Config, ignore: frozenset[str]) -> list[str]:
    """Returns the dotted keys in which two configs differ, apart from some top-level keys."""
    left, right = dotted(a, ignore), dotted(b, ignore)
    return [key for key in left | right if left.get(key) != right.get(key)]


def dotted(config: Config, ignore: Collection[str]) -> dict[str, Any]:
    """Returns the values of a config by their dotted keys, apart from some top-level keys."""
    flat = flatten(config.model_dump(exclude=set(ignore)))
    return {key: value for key, value in flat if not isinstance(value, dict)}
