"""Draws the entries that a compact run trains, before its first update."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gmt_jax import compact
from gmt_jax.compact import CompactParams

from .buckets.fetch import fetch
from .compact import start_params, sum_shardings
from .config.mask_bases import Lasting
from .config.mask_kinds import FixedMask
from .data.loader import Loader
from .hf.mask import load_mask
from .model import Params
from .program import Program
from .sharding import abstract
from .step import Batch, Objective

# Rounds in which gradients that are summed are drawn from, each with a part of the rows in memory:
# an eighth of the matrices takes 0.5 bytes an entry, which is less than the moments will take.
PARTS = 8


def begin(program: Program, weights: Params, loader: Loader) -> CompactParams:
    """The parameters before the first update, from the base's weights, which are used up.

    The entries of a compact mask are those of its file, or are drawn from the batches of the first
    updates, to which the loader goes back.
    """
    if isinstance(program.compact_mask, FixedMask):
        return _begin_from_file(program, fetch(program.compact_mask.file), weights)
    mask = _mask_of(program)
    position, batches = loader.get_state(), []
    if mask.score is not None:
        batches = [next(loader)[0] for _ in range(mask.num_updates)]
        loader.set_state(position)
    return draw_from(program, weights, batches)


def _begin_from_file(program: Program, file: Path, weights: Params) -> CompactParams:
    def choose(weights: Params, mask: Any) -> CompactParams:
        return _begin(weights, compact.choose_mask(forms, mask))

    forms = program.forms  # Checked before the mask is loaded, which takes a byte of each entry.
    mask = load_mask(file, program.model, program.weight_shardings)
    jit = jax.jit(choose, out_shardings=program.shardings.params, donate_argnums=0)
    params: CompactParams = jit(weights, mask)
    return params


def draw(
    objective: Objective, forms: Any, mask: Lasting, weights: Params, batch: Batch
) -> CompactParams:
    """The parameters, chosen layer by layer in the backward pass of one microbatch."""
    total = jnp.maximum(objective.weight(batch), 1.0)
    rows = jax.tree.map(lambda x: x[0], batch)

    def loss(drawn: Any) -> jax.Array:
        tree = compact.attach_draw(weights, forms, drawn, mask.score or "gradient")
        return objective(_resolve_tied(tree), rows).loss / total

    drawn = jax.grad(loss)(compact.empty_draw(forms, weights))
    return _begin(weights, compact.drawn_choices(forms, drawn))


def sum_part(
    objective: Objective, forms: Any, weights: Params, batch: Batch, part: jax.Array
) -> Any:
    """The gradient of an update, summed over its microbatches, of a part of the rows."""
    total = jnp.maximum(objective.weight(batch), 1.0)
    zeros = compact.empty_sums(forms, weights, PARTS)

    def loss(sums: Any, rows: Batch) -> jax.Array:
        tree = compact.attach_part(weights, forms, sums, part, PARTS)
        return objective(_resolve_tied(tree), rows).loss / total

    def add(carry: Any, rows: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, jax.grad(loss)(zeros, rows)), None

    return jax.lax.scan(add, zeros, batch)[0]


def choose_part(forms: Any, mask: Lasting, weights: Params, sums: Any, part: jax.Array) -> Any:
    """The choices of a part of the rows, from the gradient or the sum of squares of several."""

    def score(form: compact.Form, total: Any, weight: jax.Array) -> Any:
        if total is None:
            return None
        if mask.score == "fisher":
            return jnp.sqrt(total)
        parts = weight.size // total.size
        return compact.score_entries(
            mask.score or "gradient", total, compact.rows_of_part(weight, part, parts)
        )

    return compact.choose_part(
        forms, jax.tree.map(score, forms, sums, weights, is_leaf=compact.is_form)
    )


def draw_from(program: Program, weights: Params, batches: Sequence[Batch]) -> CompactParams:
    """The parameters before the first update, whose entries are chosen as the mask says.

    Args:
      batches: the microbatches [N, B/N, ...] of the first `mask.num_updates` updates.
    """
    mask, forms = _mask_of(program), program.forms
    jit = partial(jax.jit, out_shardings=program.shardings.params)
    if mask.score is None:
        return jit(lambda weights: start_params(forms, weights, weights), donate_argnums=0)(weights)
    gradient = jit_gradient(program)
    if _is_one_pass(program):
        return gradient(weights, batches[0])
    choose = jax.jit(partial(choose_part, forms, mask))
    found = []
    for number in range(PARTS):
        part, sums = jnp.int32(number), None
        for batch in batches if mask.score == "fisher" else batches[-1:]:
            sums = _add(mask.score, sums, gradient(weights, batch, part))
        found.append(jax.block_until_ready(choose(weights, sums, part)))

    def join(weights: Params, found: list[Any]) -> CompactParams:
        return _begin(weights, compact.join_parts(forms, weights, found))

    return jit(join, donate_argnums=0)(weights, found)


def _mask_of(program: Program) -> Lasting:
    assert isinstance(program.compact_mask, Lasting), "only compact masks are drawn ahead"
    return program.compact_mask


def _is_one_pass(program: Program) -> bool:
    """Whether entries are drawn in one backward pass, or from sums of several."""
    return _mask_of(program).num_updates == program.config.batch.num_microbatches == 1


def jit_gradient(program: Program) -> Any:
    """The jitted function that computes what entries are drawn from, which takes the most memory.

    It is a function of the weights and a batch that returns the parameters and donates the weights;
    where gradients are summed, of the number of a part too, whose sum it returns.
    """
    if _is_one_pass(program):
        function = partial(draw, program.objective, program.forms, _mask_of(program))
        return jax.jit(function, out_shardings=program.shardings.params, donate_argnums=0)
    shapes = jax.eval_shape(
        partial(compact.empty_sums, program.forms, num_parts=PARTS), program.abstract_weights
    )
    shardings = sum_shardings(shapes, program.weight_shardings)
    return jax.jit(partial(sum_part, program.objective, program.forms), out_shardings=shardings)


def lower_draw(program: Program) -> Any:
    """The lowered `jit_gradient`, to be compiled; None where a mask is drawn without a gradient."""
    mask = program.compact_mask
    if not isinstance(mask, Lasting) or mask.score is None:
        return None
    weights = abstract(program.abstract_weights, program.weight_shardings)
    part = () if _is_one_pass(program) else (jax.ShapeDtypeStruct((), jnp.int32),)
    return jit_gradient(program).lower(weights, program.abstract_batch(), *part)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(score: str, sums: Any, grads: Any) -> Any:
    if score == "fisher":
        grads = jax.tree.map(jnp.square, grads)
    return grads if sums is None else jax.tree.map(jnp.add, sums, grads)


def _begin(weights: Params, chosen: Any) -> CompactParams:
    return CompactParams(weights, chosen, compact.read(chosen, weights))


def _resolve_tied(tree: Any) -> Any:
    # Embeddings that are the head too: the rows' norms are those of the sum of both gradients.
    return tree if "head" in tree else tree | {"embed": compact.resolve(tree["embed"], jnp.float32)}
