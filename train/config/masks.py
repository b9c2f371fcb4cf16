"""Kinds of mask, one section each, with the keys that it takes; `mask_kinds` has the others.

A kind is named as the function of `gmt_jax` that it calls, its keys as that function's arguments.
The library, and with it jax, is imported when a mask is built: reading a config needs neither.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from ..errors import UserError
from .base import Count, Fraction, Section

if TYPE_CHECKING:
    import optax

    from gmt_jax.types import MaskRatio, StackedAxes

    Optimizer: TypeAlias = optax.GradientTransformationExtraArgs


def expressions(ratios: dict[str, float]) -> dict[str, float]:
    for pattern in ratios:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
    return ratios


class Kind(Section):
    """A kind of mask."""

    kind: str
    _function: ClassVar[str | None] = None  # the library's function, if it is not called `kind`

    @property
    def lasts(self) -> bool:
        """Whether a mask serves more than one update."""
        return getattr(self, "every", 1) != 1

    @property
    def shows_kept(self) -> bool:
        """Whether the optimizer sees what the mask keeps of the gradient, and no more."""
        return getattr(self, "apply_to", "gradient") != "update"

    def build(
        self, inner: "Optimizer", steps: int, key: int, stacked_axes: "StackedAxes"
    ) -> "Optimizer":
        """Returns the optimizer under this mask.

        Args:
          inner: the optimizer whose gradient or update is masked.
          steps: updates of the whole run, over which `final_mask_ratio` is reached.
          key: seed of the masks that are drawn at random.
          stacked_axes: as in `gmt_jax.gmt_mask`.
        """
        import gmt_jax

        arguments = self._arguments(steps, key)
        if arguments.get("scope") != "global":
            arguments["stacked_axes"] = stacked_axes
        optimizer: Optimizer = getattr(gmt_jax, self._function or self.kind)(inner, **arguments)
        return optimizer

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        """The function's arguments: the keys of the section, which a kind may add to."""
        return self.model_dump(exclude={"kind"})


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


class _Reporting(Kind):
    """A kind that can report what it masks."""

    report: bool = False
    """Record what the mask does: the share of the gradient's norm that it keeps, and its overlap
    with the previous mask."""


class Selective(_Reporting):
    """A kind that can mask the gradient, the update, or both."""

    apply_to: Literal["both", "update", "gradient"] = "both"
    """What is masked: the gradient that AdamW sees, AdamW's update, or both. With update or both,
    an entry that is masked keeps its weight to the bit."""


class _ByScore(_Reporting):
    """A kind that masks a fraction of the entries, those with the smallest scores."""

    mask_ratio: Fraction = 0.2
    """The fraction of entries that is masked, which is to say not trained."""
    mask_ratios: Annotated[dict[str, Fraction], AfterValidator(expressions)] = Field(
        default_factory=dict
    )
    """Other fractions by path, as in {"embed|norm": 0.0}: the first expression that is found in a
    parameter's path counts, and `mask_ratio` where there is none."""
    scope: Literal["tensor", "global"] = "tensor"
    """One threshold for each tensor, or one for all tensors together."""
    tolerance: Fraction = 0.0
    """The fraction of entries by which the mask may fall short; 0.001 halves the search's time."""

    @model_validator(mode="after")
    def _one_ratio_for_one_threshold(self) -> Self:
        if self.mask_ratios and self.scope == "global":
            raise ValueError("scope global has one mask_ratio; remove mask_ratios")
        return self

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        arguments = super()._arguments(steps, key) | {"mask_ratio": self._ratio(steps)}
        del arguments["mask_ratios"]
        return arguments

    def _ratio(self, steps: int) -> "MaskRatio":
        """The library's mask ratio: one for all paths, or one for each expression."""
        ratio = self._default_ratio(steps)
        return {**self.mask_ratios, ".*": ratio} if self.mask_ratios else ratio

    def _default_ratio(self, steps: int) -> "float | optax.Schedule":
        return self.mask_ratio


class Scheduled(_ByScore):
    """A kind by score that selects more than one mask."""

    final_mask_ratio: Fraction | None = None
    """Where `mask_ratio` moves to, linearly over the run; null: it stays."""

    @model_validator(mode="after")
    def _later_masks(self) -> Self:
        if self.final_mask_ratio is not None and getattr(self, "every", 1) is None:
            raise ValueError("final_mask_ratio has no effect on a mask that stays; set every too")
        return self

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        arguments = super()._arguments(steps, key)
        del arguments["final_mask_ratio"]
        return arguments

    def _default_ratio(self, steps: int) -> "float | optax.Schedule":
        if self.final_mask_ratio is None:
            return self.mask_ratio
        import optax

        return optax.linear_schedule(self.mask_ratio, self.final_mask_ratio, max(steps - 1, 1))


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


class OneOff(_ByScore, Selective):
    """Masks the smallest |gradient| of the first update, and the same entries for the whole run."""

    kind: Literal["one_off"]
    lasts: ClassVar[bool] = True
    warmup: int = Field(0, ge=0)
    """Updates before the first mask, in which no weight moves."""


class EveryFew(Scheduled, Selective):
    """Masks the smallest |gradient| of every `every`-th update until the next such update."""

    kind: Literal["every_few"]
    every: Count
    """Updates that a mask lasts."""


class GradientToWeight(Scheduled, Selective):
    """Masks the smallest |gradient| / |weight|."""

    kind: Literal["gradient_to_weight"]
    every: Count | None = None
    """Updates that a mask lasts; null: the first mask stays."""
    warmup: int = Field(0, ge=0)
    """Updates before the first mask, in which no weight moves."""


class Magnitude(Scheduled, Selective):
    """Masks the smallest |weight|."""

    kind: Literal["magnitude"]
    every: Count | None = None
    """Updates that a mask lasts; null: the first mask stays."""


class Fisher(Scheduled, Selective):
    """Masks the smallest sums of squared gradients, over `warmup` + 1 updates."""

    kind: Literal["fisher"]
    scope: Literal["tensor", "global"] = "global"
    """One threshold for each tensor, or one for all tensors together."""
    every: Count | None = None
    """Updates that a mask lasts; null: the first mask stays."""
    warmup: int = Field(ge=0)
    """Updates before the first mask, in which no weight moves."""


class _ByRole(Selective):
    """A kind that selects whole matrices or layers, which it knows by their paths."""

    every: Count
    """Updates that a mask lasts."""

    def build(
        self, inner: "Optimizer", steps: int, key: int, stacked_axes: "StackedAxes"
    ) -> "Optimizer":
        """Returns the optimizer; its `init` refuses a model whose parameters have other roles."""
        import optax

        optimizer = super().build(inner, steps, key, stacked_axes)

        def init(params: optax.Params) -> optax.OptState:
            try:
                return optimizer.init(params)
            except ValueError as error:
                raise UserError(f"optimizer.mask: {error}") from None

        return optax.GradientTransformationExtraArgs(init, optimizer.update)

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
