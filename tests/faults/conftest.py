"""Runs in processes of their own, which are killed, starved of disk and given damaged files.

`make faults` draws more faults than the suite does: FAULTS_DRAWS of each kind, beginning with the
seed FAULTS_SEED. Every failure names its seed. If FAULTS_FILE is set, that file gets a line for
each kill.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.buckets.store import Store

ROOT = Path(__file__).parents[2]
DRAWS = int(os.environ.get("FAULTS_DRAWS", "2"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
SECONDS = 300  # In which a run ends on a busy machine.
# Compiled programs are kept, however small: most of a run's seconds are theirs.
QUICK = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}

KINDS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"data": {"packing": "packed"}},
    "bucketed": {"data": {"packing": "bucketed"}},
    "streamed": {"data": {"streaming": True, "eval_fraction": 0, "shuffle_buffer": 7}},
    "accumulated": {"batch": {"size": 16, "num_microbatches": 2}},
    "random mask": {"optimizer": {"mask": {"kind": "random_mask", "mask_ratio": 0.3}}},
    "lasting mask": {"optimizer": {"mask": {"kind": "every_few", "every": 4}}},
}
VOLATILE = {"tokens_per_s", "data_wait", "seconds_left", "mfu"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A draw for each seed."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(SEED, SEED + DRAWS))


class Process:
    """`gmt-train` in a process of its own."""

    def __init__(self, zygote: "Zygote", pid: int, output: Path) -> None:
        self._zygote, self._pid, self._output = zygote, pid, output

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit status, negative for a signal; -100 after too many seconds."""
        return self._zygote.ask({"wait": self._pid, "seconds": seconds})

    def send(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal."""
        os.kill(self._pid, number)

    @property
    def text(self) -> str:
        """What was printed."""
        return self._output.read_text(errors="replace")


class Zygote:
    """Starts processes that have imported the program already."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._count = folder, 0
        flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | environment | QUICK | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        )

    def ask(self, request: dict[str, Any]) -> int:
        """The answer to a request, a number."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(
        self,
        *arguments: str,
        file_size: int | None = None,
        environment: dict[str, str] | None = None,
        **faults: Any,
    ) -> Process:
        """Starts `gmt-train` with these arguments, which cannot write larger files.

        Args:
          faults: `kill`, the moment at which it kills itself, and `poison`, the first and the last
            update in which its gradients are not finite; see the zygote.
        """
        self._count += 1
        output = self._folder / f"{self._count}.txt"
        request = {
            "arguments": arguments,
            "output": str(output),
            "file_size": file_size,
            "environment": environment or {},
            **faults,
        }
        return Process(self, self.ask(request), output)

    def close(self) -> None:
        """Ends."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def failing(top: Path) -> Path | None:
    """The library that lets changes of files fail, where there is a compiler."""
    compiler, library = shutil.which("cc"), top / "failing.so"
    if compiler is None:
        return None
    source = Path(__file__).with_name("failing.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Bucket:
    """A bucket on this machine, for runs in processes of their own."""

    def __init__(self, port: int, faults: Path) -> None:
        names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")  # gcsfs's and tensorstore's.
        self.environment = dict.fromkeys(names, f"http://localhost:{port}")
        self.environment["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "any"
        self._faults = faults

    def settings(self, file: Path) -> list[str]:
        """The settings that place a config's run in the bucket."""
        return [f"run=gs://bucket/{file.parent.name}/run"]

    def download(self, file: Path) -> None:
        """Brings that run to where it would be without those settings."""
        store = Store(f"gs://bucket/{file.parent.name}/run")
        objects = store.objects()
        store.download({name: file.parent / "run" / name for name in objects}, objects)

    def fail(self, **how: float) -> None:
        """Lets requests fail; see the server."""
        self._faults.write_text(json.dumps(how))

    def mend(self) -> None:
        """Ends that."""
        self._faults.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def bucket(top: Path) -> Iterator[Bucket]:
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package)
    server, faults = ROOT / "tests/standins/bucket_server.py", top / "faults.json"
    command = [sys.executable, str(server), "gs", str(faults)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        bucket = Bucket(port, faults)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in bucket.environment.items():
                patch.setenv(name, value)
            yield bucket
        process.kill()


@pytest.fixture(scope="session")
def zygote(top: Path, failing: Path | None) -> Iterator[Zygote]:
    preload = {"LD_PRELOAD": str(failing)} if failing else {}
    homes = {"HF_HOME": str(top / "hf"), "XDG_CACHE_HOME": str(top / "xdg")}
    zygote = Zygote(top, {"JAX_PLATFORMS": "cpu", **homes, **preload})
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def write(zygote: Zygote, top: Path) -> Callable[..., Path]:
    """Writes the config of a run of six updates."""
    model, data = top / "model", top / "sums.jsonl"
    model.mkdir()
    assert zygote.start("make-model", str(model)).wait() == 0
    with data.open("w") as out:
        for n in range(40):
            turns = [("user", f"{n}+{n * n}="), ("assistant", str(n + n * n) * (1 + n % 3))]
            messages = [{"role": role, "content": content} for role, content in turns]
            out.write(json.dumps({"messages": messages}) + "\n")
    count = 0

    def make(kind: str = "padded") -> Path:
        nonlocal count
        count += 1
        folder = top / f"run-{count}"
        folder.mkdir()
        tree: dict[str, Any] = {
            "run": str(folder / "run"),
            "cache": str(top / "cache"),
            "steps": 6,
            "model": {"path": str(model), "compute_dtype": "float32", "remat": "none"},
            "data": {"train": str(data), "max_length": 64, "eval_fraction": 0.2},
            "batch": {"size": 8},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
            "evaluation": {"every": 3, "max_new_tokens": 2, "prompts": ["3+9="]},
            "checkpoint": {"every": 2, "keep": 2},
            "log_every": 1,
            "export_dtype": "float32",
        }
        for key, value in KINDS[kind].items():
            tree[key] = tree[key] | value
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file

    return make


@pytest.fixture(scope="session")
def result() -> Callable[[Path], Any]:
    """What a finished run with a config has made."""
    return _result


def _result(config: Path) -> tuple[bytes, list[dict[str, Any]], list[Any]]:
    """A finished run's weights, its records without those of speed, and its completions."""
    run = config.parent / "run"
    records, samples = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "samples.jsonl")
    )
    stable = [{k: v for k, v in record.items() if k not in VOLATILE} for record in records]
    return (run / "export" / "model.safetensors").read_bytes(), stable, samples


class Whole:
    """Uninterrupted runs, one of each kind."""

    def __init__(self, zygote: Zygote, write: Callable[..., Path]) -> None:
        self._zygote, self._write = zygote, write
        self._runs = dict[str, tuple[Path, float]]()

    def __call__(self, kind: str) -> tuple[Path, float]:
        """The config of a finished run of that kind, and the seconds that it took."""
        if kind not in self._runs:
            for _ in range(2):  # The second finds compiled programs, as those to come do.
                file, since = self._write(kind), time.monotonic()
                process = self._zygote.start("sft", "--config", str(file))
                assert process.wait() == 0, process.text
                self._runs[kind] = file, time.monotonic() - since
        return self._runs[kind]


@pytest.fixture(scope="session")
def whole(zygote: Zygote, write: Callable[..., Path]) -> Whole:
    return Whole(zygote, write)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Writes down a fault, for those who count them."""

    def write(**fault: Any) -> None:
        if file := os.environ.get("FAULTS_FILE"):
            with Path(file).open("a") as out:
                out.write(json.dumps({"test": request.node.name, **fault}) + "\n")

    return write


@pytest.fixture
def draw(seed: int) -> random.Random:
    """Random numbers that the seed decides."""
    return random.Random(seed)
