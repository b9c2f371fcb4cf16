"""Exact order statistics of |g| for the tensors of a tree, by counting. Private to gmt_jax."""
