"""Completions of prompts: batches by length, a key-value cache, sampling and stops."""

from .batches import rounded_length, rows_per_batch
from .completions import BATCH_SIZE, check_prompts, complete, cut, generate
from .sampling import Sampling

__all__ = [
    "BATCH_SIZE",
    "Sampling",
    "check_prompts",
    "complete",
    "cut",
    "generate",
    "rounded_length",
    "rows_per_batch",
]
