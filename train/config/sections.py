"""The small sections of a config: model, mesh, batch, evaluation, checkpoint."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .base import MOST, Count, CountOrZero, Place, Section
from .data import Sources


class ModelSection(Section):
    """The pre-trained model, and how it computes."""

    path: Place
    """A folder in Hugging Face format, its address (gs://, s3://), or a hub name:
    HuggingFaceTB/SmolLM2-135M-Instruct."""
    revision: str | None = None
    """The commit or tag of a hub name."""
    chat_template: Place | None = None
    """A file with a Jinja chat template, for a tokenizer that has none or the wrong one."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The dtype of activations and matrix products; master weights are always float32."""
    remat: Literal["none", "dots", "full", "offload"] = "full"
    """What the backward pass recomputes: nothing (none), all but matrix products (dots), or whole
    layers (full); offload is full with the layers' inputs kept in the host's memory."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """The attention kernel: cudnn runs on GPUs in bfloat16, splash on TPUs, xla anywhere; auto
    takes the devices' own kernel if it can be used, and otherwise xla."""


class MeshSection(Section):
    """The number of devices along each axis of the mesh; at most one axis is -1, the rest."""

    data: int = Field(1, ge=-1, le=MOST)
    """Copies of the model, each with its own rows."""
    fsdp: int = Field(-1, ge=-1, le=MOST)
    """Parts into which weights, optimizer state and rows are split."""
    context: int = Field(1, ge=-1, le=MOST)
    """Parts into which each row is split along its length; weights are split as by fsdp."""
    tensor: int = Field(1, ge=-1, le=MOST)
    """Parts into which each layer's heads, ffn and vocabulary are split."""

    @model_validator(mode="after")
    def _no_empty_axis(self) -> Self:
        if 0 in (self.data, self.fsdp, self.context, self.tensor):
            raise ValueError("an axis has at least 1 device (or -1 for the rest)")
        return self


class BatchSection(Section):
    """The rows of one update."""

    size: Count = 32
    """Rows per update, over all devices; a row of preference pairs has both their answers."""
    num_microbatches: Count = 1
    """Parts of a batch that are computed one after another, their gradients added up."""

    @model_validator(mode="after")
    def _equal_microbatches(self) -> Self:
        if self.size % self.num_microbatches:
            raise ValueError(
                f"size {self.size} is not a multiple of num_microbatches {self.num_microbatches}"
            )
        return self


def _named_sets(sets: dict[str, Sources]) -> dict[str, Sources]:
    for name, sources in sets.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(
                f"{name!r} is no name of evaluation data: use letters, digits, and _ . -"
            )
        if not sources:
            raise ValueError(f"{name} has no source")
    return sets


class EvaluationSection(Section):
    """When the eval loss is computed and on which data, and which prompts are completed."""

    every: Count = 100
    """Updates between evaluations; the model is also evaluated before the first update and after
    the last."""
    data: Annotated[dict[str, Sources], AfterValidator(_named_sets)] = Field(default_factory=dict)
    """More evaluation data by name, as in {task: task.jsonl, general: general.jsonl}: each has a
    loss and a token accuracy of its own, `eval_task_loss` and `eval_task_token_accuracy`, beside
    the `eval_loss` of `data.eval` or of what is split off. What sources leave out is taken from
    `data`; `data.eval_limit` is the limit of each."""
    patience: Count | None = None
    """End the run after this many evaluations in a row that were not better than the best by the
    metric of `checkpoint.keep_best`; null: never."""
    sample_every: Count | None = None
    """Updates between completions of the prompts, a multiple of every; null: they are completed
    before and after training alone."""
    prompts: tuple[str, ...] | None = None
    """User turns that are completed greedily before and after training; null: two prompts of the
    data, those of the evaluation data if there are any."""
    max_new_tokens: Count = 64
    """The length of those completions in tokens."""

    @model_validator(mode="after")
    def _samples_with_evaluations(self) -> Self:
        if self.sample_every is not None and self.sample_every % self.every:
            raise ValueError(
                f"sample_every {self.sample_every} is not a multiple of every {self.every}"
            )
        return self


class ProfileSection(Section):
    """A trace of some updates by jax's profiler, in RUN/profile, for XProf and TensorBoard."""

    start: CountOrZero | None = None
    """The number of updates done before the trace begins, such as 10: the first ones compile and
    fill caches. null: there is no trace."""
    steps: Count = 3
    """The number of updates that are traced."""


class CheckpointSection(Section):
    """When the run is saved so that it can be resumed."""

    every: Count = 100
    """Updates between checkpoints; the last update is also saved."""
    minutes: float | None = Field(None, gt=0)
    """Minutes after a checkpoint when the next update that is logged is saved too; null: none."""
    keep: Count = 2
    """The number of newest checkpoints that are kept."""
    keep_every: Count | None = None
    """A checkpoint whose step is a multiple of it is kept for good; null: none is."""
    keep_best: str | None = None
    """The metric of an evaluation, such as eval_loss or eval_task_token_accuracy: the checkpoint
    with its best value is saved and kept beside the newest, and exported at the end. Smaller is
    better if the name ends in loss, else larger; the model before training does not count. null:
    the last weights are exported."""
    verify: Literal["full", "size"] = "full"
    """What is compared with a checkpoint's manifest before it is restored: the digest of every
    file (full), or the sizes of the files alone, which is quicker and does not notice bits that
    changed (size)."""
