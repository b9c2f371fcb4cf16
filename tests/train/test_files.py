"""Files and folders are replaced whole, whatever fails and whenever the process is killed."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.errors import UserError
from train.files import (
    DestinationExistsError,
    append,
    atomic_file,
    atomic_folder,
    check_destination,
    check_file,
)

OLD, NEW = {"a": "old a", "b": "old b"}, {"a": "new a", "c": "new c"}


def write(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


def replace(path: Path, error: BaseException | None = None) -> None:
    with atomic_folder(path, replace=True) as folder:
        write(folder, NEW)
        if error:
            raise error


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A whole folder, to be replaced."""
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", OLD)
    return tmp_path / "out"


class Killed(BaseException):
    """Stands for the end of the process."""


class Disk:
    """Counts the calls that change names on disk, and lets one of them go wrong.

    fault: "fails" raises OSError from that call alone; "killed" raises from it and all that
    follow, as nothing is done any more after the process has ended.
    """

    def __init__(self, patch: pytest.MonkeyPatch, fault: str, call: int) -> None:
        self.calls, self.fault, self.call = 0, fault, call
        for module, name in [(os, "rename"), (os, "replace"), (os, "rmdir"), (shutil, "rmtree")]:
            patch.setattr(module, name, self.wrapped(getattr(module, name)))

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.fault == "killed" and self.calls >= self.call:
                raise Killed
            if self.fault == "fails" and self.calls == self.call:
                if options.get("ignore_errors"):
                    return None
                raise OSError(5, "Input/output error")
            return function(*args, **options)

        return call


@pytest.mark.parametrize("fault", ["fails", "killed"])
def test_there_is_always_a_whole_copy(out: Path, fault: str) -> None:
    """Rename aside, rename in, remove the old: each goes wrong in turn."""
    count = 0
    while True:
        count += 1
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, fault, count)
            with contextlib.suppress(UserError, Killed):
                replace(out)
            if disk.calls < count:
                break
        if fault == "fails":
            assert read(out) in (OLD, NEW), count
        copies = [out, *out.parent.glob(".out.*.old")]
        assert any(copy.exists() and read(copy) in (OLD, NEW) for copy in copies), count
        for path in out.parent.iterdir():
            assert path == out or path.match(".out.????????.new") or path.match(".out.????????.old")
            shutil.rmtree(path)
        out.mkdir()
        write(out, OLD)
    assert count > 3
    assert read(out) == NEW
    assert list(out.parent.iterdir()) == [out]


def test_a_rename_that_fails_puts_the_old_folder_back(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, "fails", 2)
    with pytest.raises(UserError, match=r"out: cannot be written \(Input/output error\)"):
        replace(out)
    assert read(out) == OLD
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(28, "No space")])
def test_an_error_while_writing_leaves_the_old_folder(out: Path, error: BaseException) -> None:
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        replace(out, error)
    assert read(out) == OLD
    assert list(out.parent.iterdir()) == [out]


def test_a_new_folder_appears_whole_with_its_parents(tmp_path: Path) -> None:
    out = tmp_path / "parent" / "out"
    with atomic_folder(out, replace=False) as folder:
        write(folder, NEW)
        assert not out.exists()
    assert read(out) == NEW
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", replace=False) as folder:
        (tmp_path / "out").mkdir()
        write(folder, NEW)
    assert read(tmp_path / "out") == NEW


def test_what_is_there_is_not_replaced_unasked(out: Path) -> None:
    with (
        pytest.raises(DestinationExistsError, match="out is not empty: it holds a, b; choose"),
        atomic_folder(out, replace=False),
    ):
        pytest.fail("the body must not run")
    assert read(out) == OLD


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        write(stack.enter_context(atomic_folder(tmp_path / "out", replace=False)), OLD)
        with atomic_folder(tmp_path / "out", replace=False) as earlier:
            write(earlier, NEW)
        with pytest.raises(DestinationExistsError):
            stack.close()
    assert read(tmp_path / "out") == NEW
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(DestinationExistsError, match="out is a file; choose another folder, or rem"),
        atomic_folder(tmp_path / "out", replace=replace),
    ):
        pytest.fail("the body must not run")
    assert (tmp_path / "out").read_text() == "a file"


def test_a_link_goes_on_pointing_where_it_did(out: Path) -> None:
    link = out.with_name("link")
    link.symlink_to(out)
    replace(link)
    assert link.is_symlink()
    assert read(link) == read(out) == NEW


def test_names_that_may_be_replaced_are_no_obstacle(out: Path) -> None:
    check_destination(out, {"a", "b", "c"})
    check_destination(out.with_name("absent"))
    with pytest.raises(DestinationExistsError, match="it holds b; choose"):
        check_destination(out, {"a"})


def test_many_names_are_cut_short(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys("fedcba", ""))
    with pytest.raises(DestinationExistsError, match="holds a, b, c and 3 more; choose"):
        check_destination(tmp_path)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "parent" / "file"
    for content in ("old", "new"):
        with atomic_file(file) as temporary:
            temporary.write_text(content)
            assert not file.exists() or file.read_text() == "old"
        assert file.read_text() == content
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("fault", ["write", "rename"])
def test_an_error_leaves_the_old_file(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    Disk(monkeypatch, "fails", 1 if fault == "rename" else 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(UserError, match=r"file: cannot be written \(.+\)"))
        temporary = stack.enter_context(atomic_file(file))
        temporary.write_text("new")
        if fault == "write":
            temporary.with_name("absent").read_text()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_parent_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    for context in (atomic_file(out), atomic_folder(out, replace=False)):
        with pytest.raises(UserError) as caught, context:
            pytest.fail("the body must not run")
        assert str(caught.value).startswith(f"{out}: cannot be written (")
        assert len(caught.value.lines) == 1


def test_a_folder_and_a_device_are_no_files_to_replace(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for out in (tmp_path, pipe):
        with pytest.raises(DestinationExistsError, match="choose another path"), atomic_file(out):
            pytest.fail("the body must not run")
        with pytest.raises(DestinationExistsError, match="is no regular file"):
            check_file(out)
    assert pipe.is_fifo()


def test_a_file_that_cannot_be_written_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    check_file(tmp_path / "file")
    check_file(tmp_path / "new/folder/out")
    with pytest.raises(UserError, match=r"cannot be written \(\S+/file is no folder, or not w"):
        check_file(tmp_path / "file/out")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=r"^\S+/out: cannot be written"):
        check_file(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


KILLED = """
import os, sys
from pathlib import Path
from train.files import atomic_file, atomic_folder
out = Path(sys.argv[1])
with atomic_folder(out / "folder", replace=True) as folder, atomic_file(out / "file") as file:
    file.write_text("half")
    (folder / "half").touch()
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".folder.0123abcd.old").mkdir()  # As if it had been killed between two renames.
    (tmp_path / ".folder.0123abcd.old" / "a").write_text("old")
    with atomic_folder(tmp_path / "folder", replace=True) as one:
        assert read(tmp_path / "folder") == {"a": "old"}, "it has its name back"
        with atomic_folder(tmp_path / "folder", replace=True):
            assert one.is_dir(), "that of a living process stays"
    with atomic_file(tmp_path / "file") as file:
        file.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_text_is_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.files._PAUSE", 0)
    file = tmp_path / "a.jsonl"
    for line in ("one\n", "zwölf\n"):
        append(file, line)
    assert file.read_text(encoding="utf-8") == "one\nzwölf\n"
    with pytest.raises(UserError, match=r"^/dev/full: cannot be written \(No space left on device"):
        append(Path("/dev/full"), "three\n")
    with pytest.raises(UserError, match="cannot be written"):
        append(tmp_path / "nowhere" / "a.jsonl", "three\n")
