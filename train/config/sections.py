"""The sections of a config beside its data: model, mesh, batch, optimizer, evaluation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Count, Section


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
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers; with
    offload also whole layers, whose inputs wait in the host's memory."""
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
