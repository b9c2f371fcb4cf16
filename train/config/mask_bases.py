"""What several kinds of mask share: the keys that they take, and what is built of them."""

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from ..errors import UserError
from .base import Fraction, Section

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


def with_default(ratios: "dict[str, Any]", ratio: Any) -> "dict[str, Any]":
    """The ratios, with one for all other paths."""
    return ratios if ".*" in ratios else {**ratios, ".*": ratio}


def refusing(optimizer: "Optimizer") -> "Optimizer":
    """The optimizer, whose `init` refuses in one line a model that the mask does not fit."""
    import optax

    def init(params: optax.Params) -> optax.OptState:
        try:
            return optimizer.init(params)
        except ValueError as error:
            raise UserError(f"optimizer.mask: {error}") from None

    return optax.GradientTransformationExtraArgs(init, optimizer.update)


# Embeddings are selected by whole rows in a balanced mask: a token's gradient is in its own.
EMBEDDINGS = "^embed$"
# Of 128 entries, the rest is half a one, which is rounded up.
MOST_MASKED = 1 - 1 / 256


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

    @property
    def is_compact(self) -> bool:
        """Whether only the chosen entries are trained, by an optimizer that sees no others."""
        return False

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


class Reporting(Kind):
    """A kind that can report what it masks."""

    report: bool = False
    """Record what the mask does, at each multiple of log_every: the share of the gradient's norm
    that it keeps, and its overlap with the mask recorded before."""


class Selective(Reporting):
    """A kind that can mask the gradient, the update, or both."""

    apply_to: Literal["both", "update", "gradient"] = "both"
    """What is masked: the gradient that AdamW sees, AdamW's update, or both. With update or both,
    an entry that is masked keeps its weight to the bit."""


class ByScore(Reporting):
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
        return with_default(self.mask_ratios, ratio) if self.mask_ratios else ratio

    def _default_ratio(self, steps: int) -> "float | optax.Schedule":
        return self.mask_ratio


class Lasting(ByScore, Selective):
    """A kind whose mask may stay for the whole run."""

    selection: Literal["exact", "balanced"] | None = None
    """exact: the entries of a tensor with the largest scores. balanced: those of every 128 entries
    of a row, the same number of each, and of the embeddings whole rows; the mask is the same on
    every mesh. null: balanced if compact is true, else exact."""
    compact: bool = False
    """Keep the weights in the dtype of the computation, and train only the chosen entries in
    float32: what the mask leaves out has no master, no moments and no gradient. The mask is drawn
    before the first update, from the data of the first updates; clip_norm is that of the chosen
    entries."""
    _score: ClassVar[str | None] = "gradient"  # of an entry; None: there is no gradient in it

    @property
    def is_compact(self) -> bool:
        """Whether `compact` is true."""
        return self.compact

    @property
    def score(self) -> str | None:
        """What entries are scored by: gradient, gradient_to_weight, or the weight alone (None)."""
        return self._score

    @property
    def num_updates(self) -> int:
        """The number of updates whose gradients are summed up to draw the mask."""
        return int(getattr(self, "warmup", 0)) + 1

    @property
    def ratios(self) -> dict[str, float]:
        """The mask ratio of each expression; the first that is found in a path counts."""
        return with_default(self.mask_ratios, self.mask_ratio)

    @model_validator(mode="after")
    def _balanced_alone(self) -> Self:
        if self.compact and self.selection == "exact":
            raise ValueError("compact needs selection balanced; remove selection")
        if not self.compact and self.selection != "balanced":
            return self
        name = "compact" if self.compact else "selection balanced"
        if getattr(self, "every", None) is not None:
            raise ValueError(f"{name} needs a mask that stays; remove every")
        if self.scope == "global":
            raise ValueError(f"{name} gives every group its share; set scope to tensor")
        if self.tolerance:
            raise ValueError(f"{name} is found without a search; remove tolerance")
        for pattern, ratio in self.ratios.items():
            by_rows = pattern != ".*" and re.search(pattern, "embed")
            if MOST_MASKED < ratio < 1 and not by_rows:
                raise ValueError(
                    f"{name} trains one of every 128 entries or more; {ratio} would leave none: "
                    "take 0.996 or less, or 1"
                )
        if self.compact and (self.apply_to != "both" or self.report):
            raise ValueError("compact trains the mask's entries alone; remove apply_to and report")
        return self

    def build(
        self, inner: "Optimizer", steps: int, key: int, stacked_axes: "StackedAxes"
    ) -> "Optimizer":
        """Returns the optimizer under this mask, over whole weights."""
        if self.selection != "balanced":
            return super().build(inner, steps, key, stacked_axes)
        import gmt_jax

        balanced = gmt_jax.balanced(
            inner,
            self.ratios,
            rows=EMBEDDINGS,
            score=self.score or "weight",
            warmup=self.num_updates - 1,
            stacked_axes=stacked_axes,
            apply_to=self.apply_to,
            report=self.report,
        )
        return refusing(balanced)

    def _arguments(self, steps: int, key: int) -> dict[str, Any]:
        arguments = super()._arguments(steps, key)
        return {name: arguments[name] for name in arguments if name not in ("selection", "compact")}


class Scheduled(ByScore):
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
