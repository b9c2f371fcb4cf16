"""The devices of a TPU slice to compile for, without having it."""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ..errors import UserError

# Keeps the compiler from looking for a TPU or its host, and from locking one.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
EXAMPLES = "v6e:1x1, v5e:4x4, v5e:16x16 or v5p:4x4x4"
_ONE_CHIP = re.compile(r"\w+:1(x1)+")


def slice_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of one or several slices such as v5e:16x16; they serve compilation alone.

    A process that has not used jax yet computes on its CPU from then on.

    Raises:
      UserError: for an unknown slice, or if the compiler is missing.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology: libtpu, the compiler for TPU, is missing (it exists for Linux on x86-64); "
            'install it with pip install "jax[tpu]"'
        )
    os.environ |= ENVIRONMENT
    jax.config.update("jax_platforms", "cpu")
    # On a v4 chip jax shows one device for both cores; the compiler by default shows two.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    if _ONE_CHIP.fullmatch(name):  # Hosts have four chips otherwise.
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology {name}: no such slice ({reason}); name one such as {EXAMPLES}"
        ) from None
    return list(topology.devices)
