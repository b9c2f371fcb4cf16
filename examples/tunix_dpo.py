"""Tunix: the mask in preference tuning with `DPOTrainer`, on a Llama."""

import numpy as np
import optax
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput

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


def main() -> None:
    trainer = DPOTrainer(
        model=Llama3(CONFIG, rngs=nnx.Rngs(0)),
        ref_model=Llama3(CONFIG, rngs=nnx.Rngs(0)),
        optimizer=optax.chain(gmt_mask(0.2), optax.adamw(1e-3)),
        training_config=DPOTrainingConfig(eval_every_n_steps=100, max_steps=5),
    )
    prompt, chosen, rejected = np.random.default_rng(0).permutation(96).reshape(3, 4, 8) % 64
    mask = np.ones_like(prompt)
    pair = TrainingInput(prompt, mask, chosen, mask, rejected, mask)
    trainer.train([pair] * 5)
    masked = optax.tree.get(nnx.as_pure(trainer.optimizer.opt_state), "masked_fraction")
    loss = trainer.metrics_logger.get_metric_history("", "loss", "train")
    print(f"loss {loss[0]:.4f} to {loss[-1]:.4f}, masked {masked:.1%}")


if __name__ == "__main__":
    main()
