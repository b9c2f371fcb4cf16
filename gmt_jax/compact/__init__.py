"""Sparse fine-tuning in an adapter's memory: only the chosen entries are float32 and have moments.

Where the mask lasts for the whole run, weights that it leaves out need neither a float32 master nor
moments nor a gradient. The model's weights stay in bfloat16; k entries of every 128 have a value in
float32, which is all that the optimizer sees.

    from gmt_jax import compact

    forms = compact.plan_forms(weights, mask_ratio=0.95, rows="embed")
    chosen = compact.choose(forms, gradient)
    params = compact.CompactParams(weights, chosen, compact.read(chosen, weights))
    optimizer = compact.on_values(optax.adamw(1e-5))
    state = optimizer.init(params)

    def loss(values):
        return loss_fn(compact.attach(params._replace(values=values)), batch)

    grads = jax.grad(loss)(params.values)
    updates, state = optimizer.update(grads, state, params)
    params = compact.apply_updates(params, updates)

Inside a layer, scanned or not, the model calls `layer = compact.resolve(layer)` on its parameters.
"""

from gmt_jax.compact.choices import Choice, Frozen, Rows, Slots, Whole, is_choice
from gmt_jax.compact.draw import (
    attach_draw,
    attach_part,
    choose_part,
    drawn_choices,
    empty_draw,
    empty_sums,
    join_parts,
    rows_of_part,
    score_entries,
)
from gmt_jax.compact.inside import Attached, attach, is_node, plain_weights, resolve, take
from gmt_jax.compact.params import (
    CompactParams,
    Form,
    apply_updates,
    choose,
    choose_mask,
    form_of_mask,
    is_form,
    mask,
    num_chosen,
    num_slots,
    on_values,
    plan_forms,
    read,
    write,
)

__all__ = [
    "Attached",
    "Choice",
    "CompactParams",
    "Form",
    "Frozen",
    "Rows",
    "Slots",
    "Whole",
    "apply_updates",
    "attach",
    "attach_draw",
    "attach_part",
    "choose",
    "choose_mask",
    "choose_part",
    "drawn_choices",
    "empty_draw",
    "empty_sums",
    "form_of_mask",
    "is_choice",
    "is_form",
    "is_node",
    "join_parts",
    "mask",
    "num_chosen",
    "num_slots",
    "on_values",
    "plain_weights",
    "plan_forms",
    "read",
    "resolve",
    "rows_of_part",
    "score_entries",
    "take",
    "write",
]
