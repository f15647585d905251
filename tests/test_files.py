"""The writer that replaces files all or nothing: its order of system calls, permissions, and what an error leaves."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.files import make_directory, replace_file, write_file


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the system that decide what a power loss leaves, in their order, as they are made."""
    made: list[str] = []

    def record(name: str, describe: Callable[..., str]) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            made.append(f"{name} {describe(*arguments)}")
            return original(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    record("fsync", describe_descriptor)
    record("replace", lambda source, target: f"{describe_name(source)} -> {describe_name(target)}")
    record("mkdir", lambda path, *_: describe_name(path))
    return made


def describe_descriptor(descriptor: int) -> str:
    """Name a directory; of a file say how long it is."""
    status = os.fstat(descriptor)
    is_directory = stat.S_ISDIR(status.st_mode)
    return Path(f"/proc/self/fd/{descriptor}").readlink().name if is_directory else f"{status.st_size} bytes"


def describe_name(path: str | Path) -> str:
    return "draft" if Path(path).name.startswith(".") else Path(path).name


def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_end(
    tmp_path: Path, calls: list[str]
) -> None:
    directory = tmp_path / "place"
    directory.mkdir()
    calls.clear()

    write_file(directory / "file", b"content")

    assert calls == ["fsync 7 bytes", "replace draft -> file", "fsync place"]


def test_directories_that_are_made_have_their_names_on_the_disk(tmp_path: Path, calls: list[str]) -> None:
    write_file(tmp_path / "a" / "b" / "file", b"content")

    assert calls[:4] == ["mkdir a", f"fsync {tmp_path.name}", "mkdir b", "fsync a"]
    assert calls[-1] == "fsync b"


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    with replace_file(path) as file:
        file.write(b"new")
        file.flush()
        seen = path.read_bytes()

    assert (seen, path.read_bytes()) == (b"old", b"new")


def test_two_writers_of_one_file_do_not_mix_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file"

    with replace_file(path) as first, replace_file(path) as second:
        first.write(b"1" * 10)
        second.write(b"2" * 5)

    assert path.read_bytes() == b"1" * 10  # the one that ended last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o644, 0o644), (None, 0o640)])
def test_permissions_are_those_asked_for_whatever_the_file_had(tmp_path: Path, mode: int | None, expected: int) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o666)
    old_umask = os.umask(0o027)
    try:
        write_file(path, b"content", mode=mode)
    finally:
        os.umask(old_umask)

    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    with replace_file(tmp_path / "file", mode=0o600) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        file.write(b"secret")

    assert mode == 0o600


def test_an_error_of_the_caller_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with replace_file(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()

    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


def test_a_disk_that_does_not_take_the_content_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_file(path, b"new")

    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


def fail_to_sync_directories(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


def test_a_file_system_that_syncs_no_directory_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_sync_directories(monkeypatch, errno.EINVAL)

    write_file(tmp_path / "file", b"content")

    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_directory_whose_sync_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_sync_directories(monkeypatch, errno.EIO)

    with pytest.raises(OSError, match="Input/output error"):
        write_file(tmp_path / "file", b"content")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.write_bytes(b"kept")
    path.symlink_to(elsewhere)

    write_file(path, b"new")

    assert (elsewhere.read_bytes(), path.read_bytes(), path.is_symlink()) == (b"kept", b"new", False)


def test_make_directory_refuses_a_file_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotADirectoryError):
        make_directory(tmp_path / "file" / "below")
