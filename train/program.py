"""The program of a config: `sft` runs what `plan` compiles."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from gmt_jax import compact
from gmt_jax.fixed import with_mask

from .buckets.fetch import cache_path, fetch
from .compact import abstract_compact, abstract_weights, compact_shardings
from .config import Config
from .config.lora import LoraSection
from .config.mask_bases import EMBEDDINGS, Lasting, Reporting
from .config.mask_kinds import FixedMask
from .errors import UserError
from .hf.adapter import read_adapter, target_paths
from .hf.mask import check_mask, load_mask, mask_forms
from .measure import Measure
from .model import (
    ComputeOptions,
    ModelConfig,
    Params,
    abstract_params,
    choose_attention,
    logical_axes,
    stacked_axes,
)
from .model.lora import LoraParams, abstract_lora, lora_shardings, start_values
from .objective.build import make_objective
from .objective.preference import SIDES
from .objective.sft import Sft
from .optimizer import make_optimizer, on_factors
from .sharding import abstract, microbatch_sharding, param_shardings
from .step import Batch, Objective, TrainState, jit_train_step, state_shardings


def keep_compiled(config: Config) -> None:
    """Keeps compiled programs in the config's cache, unless jax has a cache folder already.

    A program is read back only if versions, flags and devices are the same, a CPU's instruction set
    included. Call it before the first program is compiled.
    """
    name = "jax_compilation_cache_dir"
    if getattr(jax.config, name) is None:
        jax.config.update(name, str(cache_path(config.cache) / "xla"))


def make_forms(mask: Lasting | FixedMask, model: ModelConfig, weights: Params) -> Any:
    """How entries of each parameter are chosen, of a compact mask; those of a file are counted.

    Raises:
      UserError: if a file holds no mask of the model, or one that does not fit its slots, or if a
        mask ratio leaves none.
    """
    if isinstance(mask, FixedMask):
        return mask_forms(fetch(mask.file), model, mask.slots)
    try:
        return compact.plan_forms(weights, mask.ratios, rows=EMBEDDINGS)
    except ValueError as error:
        raise UserError(f"optimizer.mask: {error}") from None


def make_abstract_lora(section: LoraSection, weights: Params) -> LoraParams:
    """The ShapeDtypeStructs of the parameters with adapters, from those of the weights."""
    targets = target_paths(section.target_modules)
    return abstract_lora(weights, targets, section.rank, section.alpha / section.rank)


@dataclass(frozen=True)
class Program:
    """Objective, optimizer, shardings and train step of a config on a mesh; nothing is allocated.

    Raises:
      UserError: where the model has too few positions, or the config's attention cannot be
        computed there.
    """

    config: Config
    model: ModelConfig
    mesh: Mesh
    steps: int  # updates of the whole run, which the schedules depend on

    def __post_init__(self) -> None:
        self.model.check_length(self.config.data.max_length, "data.max_length")
        _ = self.attention  # Raises before anything is written.

    @cached_property
    def attention(self) -> str:
        """The kernel that computes attention."""
        section = self.config.model
        return choose_attention(section.attention, self.model, self.mesh, section.compute_dtype)

    @cached_property
    def objective(self) -> Objective:
        """What is minimised."""
        section = self.config.model
        options = ComputeOptions(section.compute_dtype, section.remat, self.attention)
        return make_objective(self.config.objective, self.model, options)

    @cached_property
    def eval_objective(self) -> Objective:
        """The objective, with metrics that evaluation alone computes."""
        if isinstance(self.objective, Sft):
            return replace(self.objective, accuracy=True)
        return self.objective

    @property
    def compact_mask(self) -> Lasting | FixedMask | None:
        """The mask whose entries alone are trained; None where whole weights are."""
        mask = self.config.optimizer.mask
        return mask if isinstance(mask, Lasting | FixedMask) and mask.compact else None

    @property
    def has_base(self) -> bool:
        """Whether weights stay in the dtype of the computation, and others are trained."""
        return self.compact_mask is not None or self.config.lora is not None

    @cached_property
    def forms(self) -> Any:
        """How the entries of each parameter are chosen, of a compact mask."""
        assert self.compact_mask is not None
        return make_forms(self.compact_mask, self.model, self.abstract_weights)

    @cached_property
    def abstract_weights(self) -> Params:
        """The ShapeDtypeStructs of the weights that the model computes with."""
        if not self.has_base:
            return abstract_params(self.model)
        return abstract_weights(self.model, self.config.model.compute_dtype)

    @cached_property
    def abstract_params(self) -> Any:
        """The ShapeDtypeStructs of the parameters: weights, `CompactParams` or `LoraParams`."""
        if self.config.lora is not None:
            return make_abstract_lora(self.config.lora, self.abstract_weights)
        if self.compact_mask is None:
            return self.abstract_weights
        return abstract_compact(self.forms, self.abstract_weights)

    @cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """Clip → mask → AdamW; of the chosen entries or of adapters alone, if these are trained."""
        optimizer = make_optimizer(self.config.optimizer, self.steps, self.config.seed)
        if self.config.lora is not None:
            return on_factors(optimizer)
        return optimizer if self.compact_mask is None else compact.on_values(optimizer)

    @cached_property
    def weight_shardings(self) -> Any:
        """The sharding of every weight that the model computes with."""
        return param_shardings(self.mesh, self.abstract_weights, logical_axes(self.model))

    @cached_property
    def shardings(self) -> TrainState:
        """The sharding of every leaf of the state."""
        params = self.weight_shardings
        if self.compact_mask is not None:
            params = compact_shardings(self.mesh, self.abstract_params, params)
        if self.config.lora is not None:
            axes = logical_axes(self.model)
            params = lora_shardings(self.mesh, self.abstract_params, params, axes)
        return state_shardings(self.mesh, self.optimizer, self.abstract_params, params)

    def check_mask(self) -> None:
        """Checks that the mask fits the model.

        Raises:
          UserError: if it does not, or if the config names a file that holds none.
        """
        _ = self.shardings  # Those of the state that the mask begins with.
        if isinstance(self.config.optimizer.mask, FixedMask):
            check_mask(fetch(self.config.optimizer.mask.file), self.model)

    def init_opt_state(self, params: Any) -> optax.OptState:
        """The optimizer's first state; a mask that is given is read into each device's shard."""
        shardings = self.shardings
        state = jax.jit(self.optimizer.init, out_shardings=shardings.opt_state)(params)
        mask = self.config.optimizer.mask
        if not isinstance(mask, FixedMask) or mask.compact:
            return state
        return with_mask(state, load_mask(fetch(mask.file), self.model, shardings.params))

    def add_adapters(self, weights: Params) -> LoraParams:
        """The parameters before the first update: the base's weights, and what is beside them.

        Raises:
          UserError: if the config names an adapter that cannot be read or is another one.
        """
        section, shardings = self.config.lora, self.shardings.params
        assert section is not None
        if section.adapter is not None:
            values = read_adapter(section, self.abstract_params.values, shardings.values)
        else:
            targets, seed = target_paths(section.target_modules), self.config.seed
            start = partial(start_values, self.abstract_weights, targets, section.rank, seed)
            values = jax.jit(start, out_shardings=shardings.values)()
        return LoraParams(weights, values, shardings.scale)

    def abstract_state(self) -> TrainState:
        """The state's ShapeDtypeStructs with their shardings."""
        opt_state = jax.eval_shape(self.optimizer.init, self.abstract_params)
        step = jax.ShapeDtypeStruct((), np.int32)
        return abstract(TrainState(step, self.abstract_params, opt_state), self.shardings)

    def abstract_batch(self) -> Batch:
        """The ShapeDtypeStructs of an update's microbatches, with rows of the greatest length."""
        batch, data, objective = self.config.batch, self.config.data, self.config.objective
        sides = (SIDES,) if objective.is_preference else ()
        rows = batch.num_microbatches, batch.size // batch.num_microbatches
        shape = (*rows, *sides, data.max_length)
        dtypes = {"tokens": np.int32, "targets": np.int32, "weights": np.float32}
        if data.packing == "packed":
            dtypes |= {"segment_ids": np.int32, "positions": np.int32}
        if objective.has_reference:
            dtypes["reference"] = np.float32
        sharding = microbatch_sharding(self.mesh)
        structs: Any = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, dtype in dtypes.items()
        }
        return structs

    @property
    def measure(self) -> Measure | None:
        """What recorded updates compute beside, if the config asks for anything."""
        mask, tensors = self.config.optimizer.mask, self.config.log_tensors
        reports = isinstance(mask, Reporting) and mask.report
        return Measure(stacked_axes, tensors) if tensors or reports else None

    def train_step(self) -> Any:
        """The jitted update: (state, microbatches [N, B/N, T]) → (state, metrics).

        If recorded updates compute more, it is theirs.
        """
        return jit_train_step(
            self.objective, self.optimizer, self.mesh, self.shardings, self.measure
        )
