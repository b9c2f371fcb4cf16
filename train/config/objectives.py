"""The kinds of objective: one section each, with the keys that it takes.

A kind of preference is named as its function in `objective/preference_losses.py`, its keys as that
function's arguments.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from .base import Place, Section


class _Kind(Section):
    """A kind of objective."""

    kind: str
    is_preference: ClassVar[bool] = False  # trained on pairs
    has_reference: ClassVar[bool] = False

    def arguments(self) -> dict[str, float]:
        """The arguments of the loss: the keys that are not those of all preferences."""
        return self.model_dump(exclude={"kind", "reference", "sft_weight"})


class Sft(_Kind):
    """Supervised fine-tuning: the cross-entropy of the tokens that are trained on."""

    kind: Literal["sft"] = "sft"


class _Preference(_Kind):
    """A loss of pairs of a chosen and a rejected answer."""

    is_preference: ClassVar[bool] = True

    sft_weight: float = Field(0.0, ge=0)
    """The weight of the chosen answer's mean cross-entropy, which is added to the loss."""


class _Referenced(_Preference):
    """A loss that compares the model with a reference."""

    has_reference: ClassVar[bool] = True

    beta: float = Field(0.1, gt=0)
    """How closely the model is held to the reference (IPO's τ)."""
    reference: Place | None = None
    """The reference's folder or hub name, a model with the same tokenizer; null: `model.path`, the
    model before training."""


class Dpo(_Referenced):
    """Direct preference optimisation; conservative where labels are smoothed."""

    kind: Literal["dpo"]
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The probability that a pair's preference is wrong."""


class RobustDpo(_Referenced):
    """DPO with an unbiased loss where a known fraction of the preferences is wrong."""

    kind: Literal["robust_dpo"]
    label_smoothing: float = Field(gt=0, lt=0.5)
    """The probability that a pair's preference is wrong."""


class Hinge(_Referenced):
    """A hinge in place of DPO's logistic loss (SLiC)."""

    kind: Literal["hinge"]


class Ipo(_Referenced):
    """Identity preference optimisation, on mean log-probabilities."""

    kind: Literal["ipo"]


class SimPo(_Preference):
    """Simple preference optimisation: mean log-probabilities without a reference."""

    kind: Literal["simpo"]
    beta: float = Field(2.0, gt=0)
    """The scale of the mean log-probabilities."""
    gamma: float = Field(1.0, ge=0)
    """The margin by which the chosen answer's reward is to be larger."""


class Orpo(_Kind):
    """Supervised fine-tuning on the chosen answer with an odds ratio, without a reference."""

    is_preference: ClassVar[bool] = True

    kind: Literal["orpo"]
    beta: float = Field(0.1, gt=0)
    """The weight of the odds ratio (the paper's λ)."""


def _with_kind(section: Any) -> Any:
    """Puts the default kind into a section that names none."""
    if isinstance(section, dict) and "kind" not in section:
        return {"kind": "sft", **section}
    return section


ObjectiveSection = Annotated[
    Sft | Dpo | RobustDpo | Hinge | Ipo | SimPo | Orpo,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]
