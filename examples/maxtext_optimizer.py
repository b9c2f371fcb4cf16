"""MaxText: the mask in front of the optimizer that its config names.

Takes the arguments of `python -m maxtext.trainers.pre_train.train`, which prints the loss.
"""

import sys

import jax
import optax
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train import train

from gmt_jax import gmt_mask


def stacked_axes(path):
    """Scanned layers are stacked along axis 1, `param_scan_axis` of MaxText's config."""
    return 1 if "/layers/" in jax.tree_util.keystr(path, simple=True, separator="/") else None


mask = gmt_mask(0.2, stacked_axes=stacked_axes)


def update(updates, state, params=None, **extra_args):
    updates, state = mask.update(updates, state, params, **extra_args)
    jax.debug.print("masked {:.3f}", state.masked_fraction)
    return updates, state


of_config = optimizers.get_optimizer


def get_optimizer(*args, **kwargs):
    printing = optax.GradientTransformationExtraArgs(mask.init, update)
    return optax.chain(printing, of_config(*args, **kwargs))


optimizers.get_optimizer = get_optimizer

if __name__ == "__main__":
    train.main(sys.argv)
