"""Eight virtual CPU devices for every test, set before jax starts."""

import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    # Devices wait for each other in collectives, on a busy machine for more than the usual 40 s.
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
# Two programs in flight on eight devices need more threads than a small machine is given: with
# too few, the devices of one wait for threads that the other's hold.
os.environ["NPROC"] = "32"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Programs compiled by one test, or by one of its processes, serve the next.
cache = Path(tempfile.gettempdir()) / f"gmt-jax-tests-{os.getuid()}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
