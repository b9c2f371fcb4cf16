"""What is at an address is downloaded once, and what is written there is uploaded as a whole."""

from pathlib import Path
from typing import Any

import pytest

from train.buckets.fetch import (
    cache_folder,
    cache_path,
    destination,
    fetch,
    fetch_files,
    optional_destination,
    scratch,
    shared_cache,
)
from train.buckets.store import Store
from train.errors import UserError


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert fetch("a/b") == Path("a/b")
    assert cache_path("~/c") == Path("~/c").expanduser()
    with destination(tmp_path / "x") as path, optional_destination(None) as none:
        assert (path, none) == (tmp_path / "x", None)


def test_a_folder_is_downloaded_once_and_again_when_it_changed(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(bucket.address)
    for name in ("config.json", "sub/x.json", "model.bin"):
        store.write(name, name.encode())
    folder = fetch(bucket.address, ("*.json",))
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"config.json", "sub/x.json"}
    assert folder.name == "top"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "download", lambda *_: pytest.fail("downloaded again"))
        assert fetch(bucket.address, ("*.json",)) == folder
    store.write("config.json", b"new")
    assert (fetch(bucket.address, ("*.json",)) / "config.json").read_bytes() == b"new"
    assert (folder / "config.json").read_bytes() == b"config.json", "who reads it still can"


def test_files_are_found_by_name_and_by_pattern(gs: Any) -> None:
    store = Store(gs.address)
    for name in ("b.jsonl", "a.jsonl", "c.txt", "d/e.jsonl"):
        store.write(name, name.encode())
    assert [p.read_bytes() for p in fetch_files(f"{gs.address}/c.txt")] == [b"c.txt"]
    assert [p.name for p in fetch_files(f"{gs.address}/*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [p.name for p in fetch_files(f"{gs.address}/*/?.jsonl")] == ["e.jsonl"]
    assert len(fetch_files(f"{gs.address}/**.jsonl")) == 3
    for address in (f"{gs.address}/none", f"{gs.address}/*.csv"):
        with pytest.raises(UserError, match="see its spelling"):
            fetch_files(address)


def test_a_folder_is_uploaded_with_its_manifest_last(
    gs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[list[str]] = []
    real = Store.upload
    monkeypatch.setattr(
        Store, "upload", lambda store, files: (order.append(list(files)), real(store, files))[1]
    )
    with destination(gs.address) as path:
        assert path.name == "top"
        (path / "x").mkdir(parents=True)
        for name in ("manifest.json", "x/a", "z"):
            (path / name).write_text(name)
    assert order == [["x/a", "z"], ["manifest.json"]]
    assert Store(gs.address).read("x/a") == b"x/a"
    with pytest.raises(UserError, match=r"top is not empty: it holds manifest.json"):
        destination(gs.address).__enter__()
    with destination(f"{gs.address}.delta") as path:
        path.write_text("d")
    assert Store(gs.address + ".delta").read("") == b"d"


def test_after_an_error_nothing_is_uploaded(gs: Any) -> None:
    def fail() -> None:
        with destination(gs.address) as path:
            path.mkdir()
            (path / "a").touch()
            raise UserError(f"{path}/a: no")

    with pytest.raises(UserError, match=f"^{gs.address}/a: no$"):
        fail()
    assert not Store(gs.address).objects()
    assert not list((cache_folder() / "outputs").iterdir())
    assert not [path for path in cache_folder().iterdir() if path.name != "outputs"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(gs: Any) -> None:
    left = cache_folder() / "outputs/left"
    left.mkdir(parents=True)
    (left / "large").touch()
    with scratch("outputs") as first, scratch("outputs") as second:
        assert not left.exists()
        assert first.is_dir()
        assert second.is_dir()
    assert not list((cache_folder() / "outputs").iterdir())


def test_a_cache_is_brought_and_what_is_new_uploaded(gs: Any, capsys: Any) -> None:
    Store(gs.address).write("old/tokens", b"1")
    folder = cache_path(gs.address)
    with shared_cache(gs.address):
        assert (folder / "old/tokens").read_bytes() == b"1"
        (folder / "new").write_text("2")
    assert Store(gs.address).read("new") == b"2"
    with shared_cache(gs.address):
        (folder / "newer").write_text("3")
        gs.fail(status=403)
    assert "warning: gs://" in capsys.readouterr().err, "it is no reason to fail"
