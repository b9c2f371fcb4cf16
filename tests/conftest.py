"""Eight virtual CPU devices for every test, set before jax starts.

GMT_JAX_TEST_PLATFORM=cuda, say, runs tests that need one device on that one.
"""

import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

flags: dict[str, object] = {
    "xla_force_host_platform_device_count": 8,
    # Devices wait for each other in collectives, on a busy machine for more than the usual 40 s.
    "xla_cpu_collective_call_terminate_timeout_seconds": 300,
}
# Most of a test's time is compiling; without optimisation that takes a fourth of the time.
# `make test-all` runs the tests that compare bits a second time as users compile them.
if "GMT_JAX_TEST_OPTIMISED" not in os.environ:
    flags |= {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
    if version("jaxlib").startswith("0.10."):  # Later versions have no such flag, and refuse it.
        flags |= {"xla_cpu_use_fusion_emitters": "false"}
os.environ["JAX_PLATFORMS"] = os.environ.get("GMT_JAX_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = " ".join(f"--{name}={value}" for name, value in flags.items())
# Two programs in flight on eight devices need more threads than a small machine is given: with
# too few, the devices of one wait for threads that the other's hold.
os.environ["NPROC"] = "32"
# What is not meant is an error: a dtype or a rank that jax would silently raise.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# In the background a shell ignores it, and runs that are to be interrupted would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Programs compiled by one test, or by one of its processes, serve the next.
cache = Path(tempfile.gettempdir()) / f"gmt-jax-tests-{os.getuid()}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
