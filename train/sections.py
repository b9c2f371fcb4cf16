"""The sections of a config beside its data: model, mesh, batch, optimizer, evaluation."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from train.section import Count, Fraction, Section


class ModelSection(Section):
    """Where the pre-trained model comes from and how it computes."""

    path: str
    """A folder in Hugging Face format, or a hub name: HuggingFaceTB/SmolLM2-135M-Instruct."""
    revision: str | None = None
    """The commit or tag of a hub name."""
    chat_template: str | None = None
    """A file with a Jinja chat template, for a tokenizer that brings none or the wrong one."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of activations and matrix products; master weights are always float32."""
    remat: Literal["none", "dots", "full", "offload"] = "full"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers; offload:
    whole layers, whose inputs wait in the host's memory meanwhile."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """What computes it: cudnn on GPUs (in bfloat16), splash on TPUs, xla anywhere; auto: the one
    for the devices."""


class MeshSection(Section):
    """How many devices along each axis; -1 once for the rest."""

    data: int = Field(1, ge=-1)
    """Copies of the model, each with its own rows."""
    fsdp: int = Field(-1, ge=-1)
    """Ways in which weights, optimizer state and rows are split."""
    context: int = Field(1, ge=-1)
    """Ways in which each row is split along its length; weights are split as by fsdp."""
    tensor: int = Field(1, ge=-1)
    """Ways in which each layer's heads, ffn and vocabulary are split."""

    @model_validator(mode="after")
    def _no_zero(self) -> Self:
        if 0 in (self.data, self.fsdp, self.context, self.tensor):
            raise ValueError("an axis has at least 1 device (or -1 for the rest)")
        return self


class BatchSection(Section):
    """The rows of one update."""

    size: Count = 32
    """Rows an update, over all devices."""
    num_microbatches: Count = 1
    """Pieces that are computed one after the other, their gradients added up."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.size % self.num_microbatches:
            raise ValueError(
                f"size {self.size} is not a multiple of num_microbatches {self.num_microbatches}"
            )
        return self


# Of each kind of mask, the keys beyond ratio that it takes; those with a star it needs.
MASKS: dict[str, str] = {
    "gmt": "ratios final_ratio scope tolerance report",
    "gmt_update": "ratios final_ratio scope tolerance report",
    "random": "ratios final_ratio scope tolerance report every",
    "one_off": "ratios scope tolerance report warmup",
    "every": "ratios final_ratio scope tolerance report every*",
    "gradient_to_weight": "ratios final_ratio scope tolerance report every warmup",
    "magnitude": "ratios final_ratio scope tolerance report every",
    "fisher": "ratios final_ratio scope tolerance report every warmup*",
    "hft": "every* report",
    "lisa": "every* layers* report",
    "none": "",
}


class MaskSection(Section):
    """The weights that are trained; all kinds but gmt leave the others as they are, to the bit."""

    kind: Literal[
        "gmt",
        "gmt_update",
        "random",
        "one_off",
        "every",
        "gradient_to_weight",
        "magnitude",
        "fisher",
        "hft",
        "lisa",
        "none",
    ] = "gmt"
    """gmt: masks the smallest |gradient| of each tensor; gmt_update: in AdamW's update too, as all
    that follow do; random: any entries; one_off: those of the first update, for good; every: those
    of each `every`-th update; gradient_to_weight: the smallest |gradient| / |weight|, and
    magnitude: the smallest |weight|, at the first update; fisher: the smallest sums of squared
    gradients, over `warmup` + 1 updates; hft: half of the matrices of each layer; lisa: all layers
    but `layers`; none: nothing, which is plain fine-tuning."""
    ratio: Fraction = 0.2
    """The fraction of entries that is masked (set to zero); not of hft and lisa."""
    ratios: dict[str, Fraction] = Field(default_factory=dict)
    """Other ratios by path: {"embed|norm": 0.0}; the first expression found in it, else `ratio`."""
    final_ratio: Fraction | None = None
    """Where `ratio` moves to, linearly over the run; left out, it stays."""
    scope: Literal["tensor", "global"] | None = None
    """One threshold for each tensor, or for all together; left out, tensor, but for fisher."""
    tolerance: Fraction = 0.0
    """The fraction of entries by which the mask may fall short; 0.001 halves the search's time."""
    every: Count | None = None
    """Updates that a mask lasts; left out, 1 for random, and for the others it stays."""
    warmup: int | None = Field(None, ge=0)
    """Updates before the first mask, in which no weight moves."""
    layers: Count | None = None
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
            if said and not {name, f"{name}*"} & {"kind", "ratio", *takes}:
                raise ValueError(f"kind {self.kind} has no {name}")
        if self.ratios and self.is_global:
            raise ValueError("one threshold for all tensors has one ratio; leave out ratios")
        for pattern in self.ratios:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"ratios: {pattern!r} is no regular expression, {error}") from None
        return self


class OptimizerSection(Section):
    """Clipping, then AdamW under the mask."""

    learning_rate: float = Field(1e-5, gt=0)
    """At the peak, after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Updates over which the learning rate rises linearly to its peak."""
    final_fraction: Fraction = 0.0
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


class EvaluationSection(Section):
    """The held-out loss, and completions to read."""

    every: Count = 100
    """Updates between evaluations; there is one before the first and after the last update too."""
    prompts: tuple[str, ...] = ()
    """User turns completed greedily before and after training."""
    max_new_tokens: Count = 64
    """The length of those completions."""


class CheckpointSection(Section):
    """What a run keeps so that it can go on."""

    every: Count = 100
    """Updates between checkpoints; there is one after the last update too."""
    keep: Count = 2
    """Checkpoints kept, the newest."""
