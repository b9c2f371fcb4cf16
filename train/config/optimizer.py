"""The optimizer's section of the config: its mask, its learning rate, AdamW."""

from typing import Literal

from pydantic import Field

from .base import Fraction, Section
from .masks import GmtMask, MaskSection


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
    mask: MaskSection = GmtMask()
    """Which weights each update trains; its kind says how they are selected."""
