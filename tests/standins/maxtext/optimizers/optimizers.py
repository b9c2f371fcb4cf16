"""A stand-in for `maxtext.optimizers.optimizers`; see `maxtext.trainers.pre_train.train`."""

from typing import Any

import optax


def get_optimizer(
    config: Any, learning_rate_schedule: optax.Schedule, model: Any = None, mesh: Any = None
) -> optax.GradientTransformation:
    return optax.adamw(learning_rate_schedule, weight_decay=config.adam_weight_decay)
