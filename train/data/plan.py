"""The plan of packed rows, kept on disk."""

import hashlib
import secrets
from pathlib import Path

import numpy as np

from train.data.packing import Plan, best_fit

_METHOD = 1  # Changes with the plans that `best_fit` makes.


def plan_rows(lengths: np.ndarray, capacity: int, cache: Path) -> Plan:
    """`best_fit`, planned once for the same lengths and capacity.

    The lengths are all that a plan depends on: whatever changes in the data, the tokenizer or the
    settings changes them or leaves the plan as it was.
    """
    content = np.concatenate([[_METHOD, capacity], lengths]).astype("<i8")
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    file = cache / f"{digest}.rows.npz"
    if not file.exists():
        rows = best_fit(lengths, capacity)
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f"{digest}.{secrets.token_hex(4)}.partial.npz"
        np.savez(partial, members=rows.members, offsets=rows.offsets)
        partial.replace(file)
    with np.load(file) as saved:
        return Plan(saved["members"], saved["offsets"])
