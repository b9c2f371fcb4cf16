"""Objects are listed, read and written whole; a bucket that fails is one line after a while."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from train.buckets import store
from train.buckets.store import BucketError, Store


def test_objects_are_written_listed_read_copied_and_removed(bucket: Any, tmp_path: Path) -> None:
    store = Store(bucket.address)
    assert store.objects() == {}
    assert store.read("a") is None
    store.write("a", b"1")
    store.write("b/c", b"22")
    Store(f"{bucket.address}2").write("a", b"a neighbour's")
    assert {name: found.size for name, found in store.objects().items()} == {"a": 1, "b/c": 2}
    assert list(store.objects("b")) == ["b/c"]
    assert list(Store(f"{bucket.address}/b/c").objects()) == [""]
    before = store.objects()["a"].version
    store.write("a", b"3")
    assert store.read("a") == b"3"
    assert store.objects()["a"].version != before
    store.copy({"b/c": "d"})
    store.remove(["a", "b/c", "gone"])
    assert list(store.objects()) == ["d"]
    assert store.read("d") == b"22"


@pytest.mark.filterwarnings("ignore:Sending a large body")  # gcsfs does so in pieces of 50 MB.
def test_files_are_uploaded_and_downloaded(bucket: Any, tmp_path: Path) -> None:
    content = {"x": b"", "y/large": bytes(range(256)) * (6 * 2**12), "z [1]": b"z"}
    content |= {f"end {n}": b"\0a" + end for n, end in enumerate([b"\r", b"\n", b"\r\n", b"\n--"])}
    files = {name: tmp_path / str(number) for number, name in enumerate(content)}
    for name, file in files.items():
        file.write_bytes(content[name])
    store = Store(bucket.address)
    store.upload(files)
    objects = store.objects()
    store.download({name: tmp_path / "back" / name for name in objects}, objects)
    assert {name: (tmp_path / "back" / name).read_bytes() for name in objects} == content


def test_an_object_that_is_there_is_not_made_anew(s3: Any) -> None:
    store = Store(s3.address)
    assert store.write("lease", b"1", new=True)
    assert not store.write("lease", b"2", new=True)
    assert store.write("lease", b"1", new=True), "as after a first answer that was lost"
    assert store.read("lease") == b"1"


def test_a_bucket_that_is_not_there_is_one_line(bucket: Any, tmp_path: Path) -> None:
    store = Store(f"{bucket.kind}://nosuchbucket/x")
    assert store.objects() == {}
    with pytest.raises(BucketError, match=r"nosuchbucket/x/a: cannot be written .*no such bucket"):
        store.write("a", b"")
    (tmp_path / "f").touch()
    with pytest.raises(BucketError, match="no such bucket"):
        store.upload({"a": tmp_path / "f"})


def test_a_bucket_that_fails_for_a_while_is_waited_for(gs: Any) -> None:
    Store(gs.address).write("a", b"1")
    gs.fail(status=503)
    mending = threading.Timer(1, gs.mend)
    mending.start()
    assert Store(gs.address).read("a") == b"1"
    mending.join()


def test_a_bucket_that_goes_on_failing_is_one_line(gs: Any, hurry: Callable[[float], None]) -> None:
    hurry(0)
    gs.fail(status=403)
    with pytest.raises(BucketError, match=r"/a: cannot be written .*credentials") as caught:
        Store(gs.address).write("a", b"1")
    assert "\n" not in str(caught.value)


def test_a_machine_that_cannot_be_reached_is_one_line(
    bucket: Any, hurry: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(0)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    store._file_system.cache_clear()
    try:
        with pytest.raises(BucketError, match=r"cannot be read .*see the bucket and the network"):
            Store(bucket.address).read("a")
    finally:
        store._file_system.cache_clear()


def test_a_machine_without_credentials_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def read(address: str) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(store, "_file_system", lambda scheme: SimpleNamespace(cat_file=read))
    monkeypatch.setattr("time.sleep", pytest.fail)
    with pytest.raises(BucketError, match=r"Unable to locate.*see the address and this machine's"):
        Store("s3://bucket/x").read("a")


def test_a_package_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str, **options: Any) -> None:
        raise ImportError(f"Please install {scheme}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    store._file_system.cache_clear()
    with pytest.raises(BucketError, match=r"gs:// needs the package gcsfs; run: pip install"):
        Store("gs://bucket/x").read("a")
    store._file_system.cache_clear()


def test_no_object_is_written_outside(gs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{gs.address.removeprefix('gs://')}/../out"
    monkeypatch.setattr(store, "_listed", lambda fs, top: {name: store.Object(1, "")})
    with pytest.raises(BucketError, match=r"holds an object named \.\./out"):
        Store(gs.address).objects()
