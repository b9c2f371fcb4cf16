"""Tunix: the mask in supervised fine-tuning with `PeftTrainer`, on a Llama."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput

from gmt_jax import gmt_mask

CONFIG = ModelConfig(
    num_layers=2,
    vocab_size=64,
    embed_dim=32,
    hidden_dim=64,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-6,
)


def model_input(batch: TrainingInput) -> dict:
    B, T = batch.input_tokens.shape
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": jnp.broadcast_to(jnp.arange(T), (B, T)),
        "attention_mask": jnp.broadcast_to(jnp.tri(T, dtype=bool), (B, T, T)),
    }


def make_trainer(checkpoints: str | None = None) -> PeftTrainer:
    model = Llama3(CONFIG, rngs=nnx.Rngs(0))
    # Less than 0.2 is masked: this model's feed-forward layers start at zero, and equal gradients
    # are kept. `inject_hyperparams` is how Tunix logs the learning rate.
    adamw = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2)
    config = TrainingConfig(
        eval_every_n_steps=100, max_steps=5, checkpoint_root_directory=checkpoints
    )
    trainer = PeftTrainer(model, optax.chain(gmt_mask(0.2), adamw), config)
    return trainer.with_gen_model_input_fn(model_input)


def main() -> None:
    trainer = make_trainer()
    tokens = np.random.default_rng(0).permutation(64).reshape(4, 16)
    trainer.train([TrainingInput(tokens, np.ones_like(tokens))] * 5)
    state = nnx.as_pure(trainer.optimizer.opt_state)
    masked = optax.tree.get(state, "masked_fraction")
    loss = trainer.metrics_logger.get_metric_history("", "loss", "train")
    print(f"loss {loss[0]:.4f} to {loss[-1]:.4f}, masked {masked:.1%}")


if __name__ == "__main__":
    main()
