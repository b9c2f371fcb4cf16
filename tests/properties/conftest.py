"""Promotion as optax needs it, and the chips of a TPU slice to compile for without having it."""

import math
from collections.abc import Iterator

import jax
import pytest
from jax.experimental import topologies


@pytest.fixture(autouse=True, scope="module")
def _promotion() -> Iterator[None]:
    """The optimizers in these tests are optax's, whose own code promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def chips() -> Iterator[list[jax.Device]]:
    """Four chips of TPU v5e."""
    with pytest.MonkeyPatch.context() as patch:
        # So that the compiler neither looks for a TPU nor locks one: other processes compile too.
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        patch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    # A program compiled without its device cannot be read back from the compilation cache.
    cached_from = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    yield list(chips)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cached_from)
