"""The optimizer's section of the config: its mask, its learning rate, AdamW."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Count, Fraction, Section

# Of each kind of mask, the keys beyond ratio that it takes; those with a star it needs.
MASKS: dict[str, str] = {
    "gmt_mask": "mask_ratios final_mask_ratio scope tolerance report",
    "gmt": "mask_ratios final_mask_ratio scope tolerance report",
    "random_mask": "mask_ratios final_mask_ratio scope tolerance report every",
    "one_off": "mask_ratios scope tolerance report warmup",
    "every_few": "mask_ratios final_mask_ratio scope tolerance report every*",
    "gradient_to_weight": "mask_ratios final_mask_ratio scope tolerance report every warmup",
    "magnitude": "mask_ratios final_mask_ratio scope tolerance report every",
    "fisher": "mask_ratios final_mask_ratio scope tolerance report every warmup*",
    "hft": "every* report",
    "lisa": "every* num_layers* report",
    "none": "",
}


class MaskSection(Section):
    """The weights that are trained; all kinds but gmt leave the others as they are, to the bit."""

    kind: Literal[
        "gmt_mask",
        "gmt",
        "random_mask",
        "one_off",
        "every_few",
        "gradient_to_weight",
        "magnitude",
        "fisher",
        "hft",
        "lisa",
        "none",
    ] = "gmt_mask"
    """gmt_mask: masks the smallest |gradient| of each tensor; gmt: in AdamW's update too, as all
    that follow do; random_mask: any entries; one_off: those of the first update, for good;
    every_few: those of each `every`-th update; gradient_to_weight: the smallest |gradient| /
    |weight|, and magnitude: the smallest |weight|, at the first update; fisher: the smallest sums
    of squared gradients, over `warmup` + 1 updates; hft: half of the matrices of each layer; lisa:
    all layers but `num_layers`; none: nothing, which is plain fine-tuning."""
    mask_ratio: Fraction = 0.2
    """The fraction of entries that is masked (set to zero); not of hft and lisa."""
    mask_ratios: dict[str, Fraction] = Field(default_factory=dict)
    """Other ratios by path: {"embed|norm": 0.0}; the first expression found in it counts."""
    final_mask_ratio: Fraction | None = None
    """Where `mask_ratio` moves to, linearly over the run; left out, it stays."""
    scope: Literal["tensor", "global"] | None = None
    """One threshold for each tensor, or for all together; left out, tensor, but for fisher."""
    tolerance: Fraction = 0.0
    """The fraction of entries by which the mask may fall short; 0.001 halves the search's time."""
    every: Count | None = None
    """Updates that a mask lasts; left out, 1 for random_mask, and for the others it stays."""
    warmup: int | None = Field(None, ge=0)
    """Updates before the first mask, in which no weight moves."""
    num_layers: Count | None = None
    """How many layers lisa trains at a time."""
    report: bool = False
    """Record what the mask does: the share of the norm that it keeps, its overlap with the last."""

    @property
    def is_global(self) -> bool:
        """Whether all tensors share a threshold."""
        return self.scope == "global" or (self.scope is None and self.kind == "fisher")

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        takes = MASKS[self.kind].split()
        for name, field in type(self).model_fields.items():
            said = getattr(self, name) != field.get_default(call_default_factory=True)
            if f"{name}*" in takes and not said:
                raise ValueError(f"kind {self.kind} needs {name}")
            if said and not {name, f"{name}*"} & {"kind", "mask_ratio", *takes}:
                raise ValueError(f"kind {self.kind} has no {name}")
        if self.mask_ratios and self.is_global:
            raise ValueError("one threshold for all tensors has one ratio; leave out mask_ratios")
        for pattern in self.mask_ratios:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"mask_ratios: {pattern!r} is no regular expression, {error}"
                ) from None
        return self


class OptimizerSection(Section):
    """Clipping, then AdamW under the mask."""

    learning_rate: float = Field(1e-5, gt=0)
    """At the peak, after the warm-up."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Updates over which the learning rate rises linearly to its peak."""
    min_lr_ratio: Fraction = 0.0
    """The last learning rate, as a fraction of the peak."""
    b1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the gradient's running mean."""
    b2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the squared gradient's running mean."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's addition to the root of that mean."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the gradient's running mean. That of its square is float32 always: bfloat16 would lose an
    update's change to it, which is a thousandth."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled; on matrices only, not on norms and biases."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Upper bound of the gradient's global norm; null: no clipping."""
    mask: MaskSection = MaskSection()
