"""Kinds of mask, one section each, with the keys that it takes; `mask_kinds` has the others.

A kind is named as the function of `gmt_jax` that it calls, its keys as that function's arguments.
The library, and with it jax, is imported when a mask is built: reading a config needs neither.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from .base import Count, CountOrZero
from .mask_bases import Kind, Lasting, Scheduled, Selective, refusing

if TYPE_CHECKING:
    import optax

    from gmt_jax.types import StackedAxes

    Optimizer: TypeAlias = optax.GradientTransformationExtraArgs


class NoMask(Kind):
    """Plain fine-tuning: every weight is trained."""

    kind: Literal["none"]

    @property
    def shows_kept(self) -> bool:
        """There is no mask."""
        return False

    def build(
        self, inner: "Optimizer", steps: int, key: int, stacked_axes: "StackedAxes"
    ) -> "Optimizer":
        """Returns `inner` itself."""
        return inner


class GmtMask(Scheduled):
    """Gradient-Mask Tuning: masks the smallest |gradient| of each tensor in the gradient that
    AdamW sees. Momentum and weight decay move masked weights too."""

    kind: Literal["gmt_mask"] = "gmt_mask"
    # It computes what optax.chain(gmt_mask(…), inner) does, and can report.
    _function: ClassVar[str | None] = "gmt"

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        return super()._arguments(steps, key) | {"apply_to": "gradient"}


class Gmt(Scheduled, Selective):
    """Gradient-Mask Tuning that masks AdamW's update too."""

    kind: Literal["gmt"]


class RandomMask(Scheduled, Selective):
    """Masks entries that are drawn at random."""

    kind: Literal["random_mask"]
    every: Count = 1
    """Updates that a mask lasts."""

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        return super()._arguments(steps, key) | {"key": key}


class OneOff(Lasting):
    """Masks the smallest |gradient| of the first update, and the same entries for the whole run."""

    kind: Literal["one_off"]
    lasts: ClassVar[bool] = True
    warmup: CountOrZero = 0
    """Updates before the first mask, in which no weight moves."""


class EveryFew(Scheduled, Selective):
    """Masks the smallest |gradient| of every `every`-th update until the next such update."""

    kind: Literal["every_few"]
    every: Count
    """Updates that a mask lasts."""


class GradientToWeight(Scheduled, Lasting):
    """Masks the smallest |gradient| / |weight|."""

    kind: Literal["gradient_to_weight"]
    _score: ClassVar[str | None] = "gradient_to_weight"
    every: Count | None = None
    """Updates that a mask lasts; null: the first mask stays."""
    warmup: CountOrZero = 0
    """Updates before the first mask, in which no weight moves."""


class Magnitude(Scheduled, Lasting):
    """Masks the smallest |weight|."""

    kind: Literal["magnitude"]
    _score: ClassVar[str | None] = None
    every: Count | None = None
    """Updates that a mask lasts; null: the first mask stays."""


class Fisher(Scheduled, Lasting):
    """Masks the smallest sums of squared gradients, over `warmup` + 1 updates."""

    kind: Literal["fisher"]
    _score: ClassVar[str | None] = "fisher"
    scope: Literal["tensor", "global"] = "global"
    """One threshold for each tensor, or one for all tensors together."""
    every: Count | None = None
    """Updates that a mask lasts; null: the first mask stays."""
    warmup: CountOrZero
    """Updates before the first mask, in which no weight moves."""


class _ByRole(Selective):
    """A kind that selects whole matrices or layers, which it knows by their paths."""

    every: Count
    """Updates that a mask lasts."""

    def build(
        self, inner: "Optimizer", steps: int, key: int, stacked_axes: "StackedAxes"
    ) -> "Optimizer":
        """Returns the optimizer; its `init` refuses a model whose parameters have other roles."""
        return refusing(super().build(inner, steps, key, stacked_axes))

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        return super()._arguments(steps, key) | {"key": key}


class Hft(_ByRole):
    """Half fine-tuning: trains half of the matrices of each layer, drawn at random."""

    kind: Literal["hft"]


class Lisa(_ByRole):
    """Trains `num_layers` layers, drawn at random, and what belongs to no layer."""

    kind: Literal["lisa"]
    num_layers: Count
    """The number of layers that are trained at a time."""
