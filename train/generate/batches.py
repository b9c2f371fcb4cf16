"""Sizes of batches: few of them, because each is compiled."""

from ..errors import UserError
from ..sharding import num_shards

WIDTH = 16  # Lengths are multiples of this many tokens.


def rows_per_batch(num_rows: int, batch_size: int) -> int:
    """The rows of each batch, so that all have the same number and the mesh can split them.

    It is `batch_size`, or a power of two for fewer rows than that; then as many more as the mesh
    needs.

    Raises:
      UserError: if `batch_size` is not positive.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    rows = min(batch_size, 1 << max(num_rows - 1, 0).bit_length())
    shards = num_shards("batch")
    return -(-rows // shards) * shards


def rounded_length(length: int) -> int:
    """A length to which several are rounded up, by less than a fourth or `WIDTH` tokens.

    >>> [rounded_length(length) for length in (1, 16, 17, 130, 1000)]
    [16, 16, 32, 160, 1024]
    """
    step = max(WIDTH, 1 << max((length - 1).bit_length() - 3, 0))
    return -(-length // step) * step
