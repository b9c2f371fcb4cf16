"""Exact order statistics of |g| over the tensors of a tree, by counting: private to gmt_jax."""
