"""levanter: a registered optimizer config, on a Llama whose layers are stacked."""

from dataclasses import dataclass

import equinox as eqx
import haliax as hax
import jax
import optax
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample, compute_next_token_loss
from levanter.optim import AdamConfig, OptimizerConfig
from levanter.trainer_state import TrainerState

from gmt_jax import gmt_mask


def layer_axis(path):
    """Stacked layers have their number as first axis."""
    return 0 if any(getattr(key, "name", None) == "stacked" for key in path) else None


@OptimizerConfig.register_subclass("gmt_adam")
@dataclass(frozen=True)
class GmtAdamConfig(AdamConfig):
    """In YAML: `optimizer: {type: gmt_adam, mask_ratio: 0.2, learning_rate: 1e-5}`."""

    mask_ratio: float = 0.2

    def build(self, num_train_steps):
        mask = gmt_mask(self.mask_ratio, stacked_axes=layer_axis)
        return optax.chain(mask, super().build(num_train_steps))


def main():
    Vocab = hax.Axis("vocab", 64)
    config = LlamaConfig(
        seq_len=64, hidden_dim=32, intermediate_dim=64, num_layers=2, num_heads=4, num_kv_heads=2
    )
    model = config.build(Vocab, key=jax.random.key(0))
    tokens = hax.named(jax.random.permutation(jax.random.key(1), 64), model.Pos)
    example = LmExample.causal(tokens)
    optimizer = GmtAdamConfig(learning_rate=1e-2, default_weight_decay_mask=False).build(100)
    state = TrainerState.init(optimizer, model, key=jax.random.key(2))

    def loss_fn(model, example):
        return compute_next_token_loss(model, example, reduction=None).mean().scalar()

    @hax.named_jit
    def train_step(state, example):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(state.model, example)
        return state.take_step(grads, key=state.training_key)[0], loss

    for step in range(5):
        state, loss = train_step(state, example)
        masked = optax.tree.get(state.opt_state, "masked_fraction")
        print(f"step {step}: loss {loss.item():.4f}, masked {masked:.1%}")
    return state


if __name__ == "__main__":
    main()
