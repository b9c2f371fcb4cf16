"""The optimizer section of the config: the learning rate, AdamW, and the mask."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Fraction, Section
from .masks import GmtMask, MaskSection


class OptimizerSection(Section):
    """Clipping of the gradient, then AdamW under a mask."""

    learning_rate: float = Field(1e-5, gt=0)
    """The peak of the learning rate, at the end of the warm-up."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Updates over which the learning rate rises linearly to its peak."""
    min_lr_ratio: Fraction = 0.0
    """The last learning rate as a fraction of the peak."""
    b1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the gradient's running mean."""
    b2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the squared gradient's running mean."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's addition to the root of the squared gradient's running mean."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the gradient's running mean. The squared gradient's is always float32: an update
    changes it by a thousandth, which bfloat16 would round away."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, of matrices only: not of norms and biases."""
    clip_norm: float | None = Field(1.0, gt=0)
    """The largest global norm of the gradient, which is clipped to it; null: no clipping."""
    mask: MaskSection = GmtMask()
    """Which weights an update trains, by the kind of mask. A kind is the name of the function of
    `gmt_jax` that selects them, none excepted."""

    @model_validator(mode="after")
    def _constant_has_no_minimum(self) -> Self:
        if self.lr_schedule == "constant" and self.min_lr_ratio:
            raise ValueError("min_lr_ratio has no effect when lr_schedule is 'constant'; remove it")
        return self
