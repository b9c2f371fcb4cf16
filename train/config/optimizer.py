"""The optimizer section of the config: the learning rate, the optimizer, and the mask."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from .base import CountOrZero, Fraction, Section
from .mask_kinds import MaskSection
from .masks import GmtMask

if TYPE_CHECKING:
    import optax

_ARGUMENTS = ("b1", "b2", "eps", "mu_dtype", "weight_decay")  # keys that are arguments
# AdamW's, spelled out so that a saved config does not depend on optax's defaults.
_ADAMW = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "mu_dtype": "float32"}
_SCHEDULES = ("cosine", "linear", "constant")
_STEPS = 1000  # of a schedule that is made to check its arguments


class OptimizerSection(Section):
    """Clipping of the gradient, then an optimizer under a mask."""

    name: str = "adamw"
    """The optimizer: a function of optax or optax.contrib, such as lion, muon or adafactor, or
    module:attribute."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the optimizer beside the keys of this section, as in {momentum: 0.9}."""
    learning_rate: float = Field(1e-5, gt=0)
    """The peak of the learning rate, at the end of the warm-up."""
    lr_schedule: str = "cosine"
    """How the learning rate falls after the warm-up: cosine, linear, constant, wsd (constant, then
    linear), inverse_sqrt, a schedule of optax, such as exponential_decay, or module:attribute."""
    lr_schedule_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the schedule, as in {decay_ratio: 0.2}: the part of the run in which wsd
    falls."""
    warmup_steps: CountOrZero = 0
    """Updates over which the learning rate rises linearly to its peak."""
    min_lr_ratio: Fraction = 0.0
    """The last learning rate as a fraction of the peak."""
    b1: float | None = Field(None, ge=0, lt=1)
    """The decay of the gradient's running mean; null: the optimizer's, AdamW's 0.9."""
    b2: float | None = Field(None, ge=0, lt=1)
    """The decay of the squared gradient's running mean; null: the optimizer's, AdamW's 0.999."""
    eps: float | None = Field(None, gt=0)
    """The addition to the root of the squared gradient's running mean; null: the optimizer's,
    AdamW's 1e-8."""
    mu_dtype: Literal["float32", "bfloat16"] | None = None
    """The dtype of the gradient's running mean; null: float32. The squared gradient's is always
    float32: an update changes it by a thousandth, which bfloat16 would round away."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, of matrices only: not of norms and biases."""
    clip_norm: float | None = Field(1.0, gt=0)
    """The largest global norm of the gradient, which is clipped to it; null: no clipping. It is the
    norm of what the mask keeps where a mask lasts for several updates, else that of the whole
    gradient."""
    mask: MaskSection = GmtMask()
    """Which weights an update trains, by the kind of mask. A kind is the name of the function of
    `gmt_jax` that selects them, none excepted."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the optimizer that are set."""
        keys = {key: getattr(self, key) for key in _ARGUMENTS}
        return {key: value for key, value in keys.items() if value is not None} | self.args

    def build(self, schedule: "optax.Schedule", given: dict[str, Any]) -> Any:
        """The optimizer without mask and clipping; the arguments are those of `by_name`."""
        from ..by_name import make_optimizer_by_name

        return make_optimizer_by_name(self.name, schedule, self.arguments, given)

    def build_schedule(self, steps: int) -> "optax.Schedule":
        """The learning rate, in a run of so many updates."""
        from ..by_name import make_schedule_by_name

        return make_schedule_by_name(
            self.lr_schedule,
            self.learning_rate,
            steps,
            self.warmup_steps,
            self.min_lr_ratio,
            self.lr_schedule_args,
        )

    @model_validator(mode="before")
    @classmethod
    def _with_adamw(cls, section: Any) -> Any:
        if isinstance(section, dict) and section.get("name", "adamw") == "adamw":
            return {**_ADAMW, **section}
        return section

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        """Makes optimizer and schedule once, unless they are those that need no jax to be known."""
        if self.lr_schedule == "constant" and self.min_lr_ratio:
            raise ValueError("min_lr_ratio has no effect when lr_schedule is 'constant'; remove it")
        if self.name != "adamw" or self.args:
            from ..by_name import check_optimizer, needs_matrices

            check_optimizer(self.name, self.arguments)
            if self.mask.is_compact and needs_matrices(self.name, self.arguments):
                raise ValueError(
                    f"{self.name} computes with whole matrices, which mask.compact does "
                    "without; name one of single entries, such as adamw or lion, or remove compact"
                )
        if self.lr_schedule not in _SCHEDULES or self.lr_schedule_args:
            self.build_schedule(_STEPS)
        return self
