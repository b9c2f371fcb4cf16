"""Buckets on this machine."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.buckets import store

SERVER = Path(__file__).parents[2] / "standins/bucket_server.py"
PACKAGES = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto")}


class Bucket:
    """An empty bucket's address, and how it fails.

    Attributes:
      address: under which nothing is stored yet.
    """

    def __init__(self, kind: str, port: int, faults: Path) -> None:
        self.kind, self.port, self._faults, self._count = kind, port, faults, 0
        self.address = ""

    def renew(self) -> "Bucket":
        """Takes another address."""
        self._count += 1
        self.address = f"{self.kind}://bucket/{self._count}/top"
        self.mend()
        return self

    def fail(self, **how: float) -> None:
        """Lets every request fail; see the server."""
        self._faults.write_text(json.dumps(how))

    def mend(self) -> None:
        """Ends that."""
        self._faults.unlink(missing_ok=True)


def _serve(kind: str, folder: Path) -> Iterator[Bucket]:
    for package in PACKAGES[kind]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    faults = folder / "faults.json"
    command = [sys.executable, str(SERVER), kind, str(faults)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        lines = iter(server.stdout.readline, "")
        port = next(int(line) for line in lines if line.strip().isdecimal())
        yield Bucket(kind, port, faults)
        server.kill()


@pytest.fixture(scope="session")
def _gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    yield from _serve("gs", tmp_path_factory.mktemp("gs"))


@pytest.fixture(scope="session")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    yield from _serve("s3", tmp_path_factory.mktemp("s3"))


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def gs(_gs: Bucket, _here: None, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, f"http://localhost:{_gs.port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
    return _gs.renew()


@pytest.fixture
def s3(_s3: Bucket, _here: None, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{_s3.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return _s3.renew()


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of each kind."""
    found: Bucket = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the seconds in which a bucket's operation is tried again."""
    return lambda seconds: monkeypatch.setattr(store, "PATIENCE", seconds)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs's own pauses are short."""
    if find_spec("gcsfs") is not None:
        from gcsfs import retry

        sleep = retry.asyncio.sleep
        patched = SimpleNamespace(sleep=lambda seconds: sleep(seconds / 100))
        monkeypatch.setattr(retry, "asyncio", patched)
