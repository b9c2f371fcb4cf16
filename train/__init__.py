"""Fine-tunes causal language models with Gradient-Mask Tuning on JAX meshes."""
