"""EasyDeL: the mask as the `pruning_module` of a trainer, which may wrap the optimizer."""

import easydel as ed
import numpy as np
import optax
from datasets import Dataset
from flax import nnx

from gmt_jax import gmt_mask


class GradientMask:
    """An optimizer behind `gmt_mask`, whose arguments these are; weights stay as they are."""

    def __init__(self, mask_ratio, **options):
        self.mask = gmt_mask(mask_ratio, **options)

    def wrap_optax(self, tx):
        return optax.chain(self.mask, tx)

    def pre_forward_update(self, params, opt_state):
        return params

    def post_gradient_update(self, params, opt_state):
        return params


def main():
    config = ed.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    tokens = np.random.default_rng(0).permutation(64).reshape(4, 16).tolist()
    trainer = ed.Trainer(
        arguments=ed.TrainingArguments(
            total_batch_size=4,
            num_train_epochs=5,
            learning_rate=1e-2,
            pruning_module=GradientMask(0.2),
        ),
        model=ed.LlamaForCausalLM(config, rngs=nnx.Rngs(0)),
        dataset_train=Dataset.from_dict({"input_ids": tokens, "labels": tokens}),
    )
    state = trainer.train().state  # EasyDeL shows the loss.
    print(f"masked {optax.tree.get(state.opt_state, 'masked_fraction'):.1%}")
    return state


if __name__ == "__main__":
    main()
