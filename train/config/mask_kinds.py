"""The mask section: a union of all kinds; and the kinds that select by no score of the gradient."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .base import Fraction, Place
from .mask_bases import Kind, Scheduled, Selective, expressions
from .masks import (
    EveryFew,
    Fisher,
    Gmt,
    GmtMask,
    GradientToWeight,
    Hft,
    Lisa,
    Magnitude,
    NoMask,
    OneOff,
    RandomMask,
)

_SLOTS = 16  # Of a fixed mask: an eighth of the entries.


class _AtRandom(Kind):
    """A kind that leaves whole tensors out of an update at random, and reports nothing."""

    skip_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The probability that a tensor is left out of an update."""
    skip_ratios: Annotated[dict[str, Fraction], AfterValidator(expressions)] = Field(
        {"embed|head|norm|bias": 0.0}
    )
    """Other probabilities by path: the first expression that is found in a parameter's path counts,
    and `skip_ratio` where there is none."""

    @property
    def shows_kept(self) -> bool:
        """The optimizer sees the whole gradient."""
        return False

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        arguments = super()._arguments(steps, key) | {"key": key}
        arguments["skip_ratio"] = {**arguments.pop("skip_ratios"), ".*": self.skip_ratio}
        return arguments


class SkipUpdate(_AtRandom):
    """Leaves whole tensors out of an update at random; the others move further."""

    kind: Literal["skip_update"]


class Magma(_AtRandom):
    """Leaves whole tensors out of an update at random; the others move by how well momentum and
    gradient agree."""

    kind: Literal["magma"]
    temperature: float = Field(2.0, gt=0)
    """The temperature of the agreement."""


class Mofo(Scheduled):
    """Masks the smallest first moments in the optimizer's update; the optimizer sees the whole
    gradient."""

    kind: Literal["mofo"]
    mask_ratio: Fraction = 0.85
    """The fraction of entries that is masked, which is to say not trained."""

    @property
    def shows_kept(self) -> bool:
        """The optimizer sees the whole gradient."""
        return False


class FixedMask(Selective):
    """A mask of your own, for the whole run: of a file of bits, or the entries that a delta
    changes."""

    kind: Literal["fixed_mask"]
    lasts: ClassVar[bool] = True
    file: Place
    """A safetensors file: bools or bits of each tensor, by its name in the model's files (tensors
    that are not there are not trained), or a delta of `gmt-train delta extract`."""
    compact: bool = False
    """Keep the weights in the dtype of the computation, and train only the mask's entries in
    float32: what the mask leaves out has no master, no moments and no gradient."""
    slots: int = Field(_SLOTS, ge=1, le=128)
    """With compact: the most entries of 128 of a matrix' row that may be trained. A tensor takes
    as many slots in each 128 as its fullest has; embeddings may also be trained by whole rows, and
    any tensor as a whole."""

    @property
    def is_compact(self) -> bool:
        """Whether `compact` is true."""
        return self.compact

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Self:
        if self.compact and (self.apply_to != "both" or self.report):
            raise ValueError("compact trains the mask's entries alone; remove apply_to and report")
        if not self.compact and self.slots != _SLOTS:
            raise ValueError("slots has no effect without compact; remove it")
        return self

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        arguments = super()._arguments(steps, key) | {"mask": None}  # Put into the state later.
        return {
            name: arguments[name] for name in arguments if name not in ("file", "compact", "slots")
        }


def _with_kind(section: Any) -> Any:
    """Puts the default kind into a section that names none."""
    if isinstance(section, dict) and "kind" not in section:
        return {"kind": "gmt_mask", **section}
    return section


MaskSection = Annotated[
    GmtMask
    | Gmt
    | RandomMask
    | OneOff
    | EveryFew
    | GradientToWeight
    | Magnitude
    | Fisher
    | Mofo
    | SkipUpdate
    | Magma
    | FixedMask
    | Hft
    | Lisa
    | NoMask,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]
