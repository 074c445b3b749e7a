"""files.py: a file is whole or not there, whatever happens while it is written."""

import errno
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from tiny import ROOT

from distill import files
from distill.files import (
    followed,
    open_file,
    open_locked,
    read_text,
    remove_leftovers,
    sha256,
    write_atomically,
    write_derived,
    write_together,
)

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("content", ["naïve\n", "naïve\n".encode(), lambda file: file.write("naïve\n".encode())])
def test_write_takes_text_bytes_and_writers(tmp_path, content):
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == "naïve\n".encode()


def test_a_folder_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="Its folder does not exist"):
        write_atomically(tmp_path / "new" / "file", "")
    assert not [*tmp_path.iterdir()]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    def failing(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    write_atomically(tmp_path / "file", "old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", failing)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(f"distill.files.os.{call}", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_a_file_is_on_the_disk_before_it_is_under_its_name(tmp_path, monkeypatch):
    calls = []
    fsync = os.fsync
    replace = os.replace
    monkeypatch.setattr("distill.files.os.fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr("distill.files.os.replace", lambda *a: (calls.append("replace"), replace(*a)))
    write_atomically(tmp_path / "file", "content")
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("name", [".file.tmp", ".file.0123456789abcdef.tmp"])
def test_write_removes_what_a_killed_process_left(tmp_path, name):
    (tmp_path / name).write_text("torn")
    (tmp_path / ".other.tmp").write_text("of another file")
    write_atomically(tmp_path / "file", "whole")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "whole", ".other.tmp": "of another file"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_text("torn")
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.rglob("*")} == {"file", "folder"}


def test_a_file_that_another_is_writing_is_no_leftover(tmp_path):
    def slow(file):
        write_atomically(tmp_path / "file", "the other one's")
        remove_leftovers(tmp_path)
        file.write(b"mine")

    write_atomically(tmp_path / "file", slow)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "mine")]


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_of_files_written_together_all_are_there_or_none(tmp_path):
    def failing(file):
        file.write(b"half of the s")
        raise KeyboardInterrupt

    first = tmp_path / "first"
    second = tmp_path / "folder" / "second"
    second.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_together({first: "1", second: failing})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    write_together({first: "1", second: b"2"})
    assert (first.read_text(), second.read_text()) == ("1", "2")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_a_regular_file_is_read_directly_and_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes("naïve\n".encode())
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_text(tmp_path / name) == "naïve\n"
        with open_file(tmp_path / name) as file:
            assert file.read(3) == b"na\xc3"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder", "link"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as open_socket:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            open_socket.bind(str(path))
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "device" else "file")
        with pytest.raises(OSError, match=r"Not a regular file|Is a directory|symbolic links") as refused:
            open_file(path)
    assert refused.value.filename == str(path)


def test_several_may_write_one_file_at_the_same_time(tmp_path):
    def write(i):
        for _ in range(20):
            write_together({tmp_path / "figure.png": f"{i}", tmp_path / "figure.svg": f"{i}"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert {p.name for p in tmp_path.iterdir()} == {"figure.png", "figure.svg"}


# ------------------------------------------------------------------------------------------ links, devices and pipes


def test_a_link_is_followed_or_refused(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("new")
    (tmp_path / "device").symlink_to("/dev/full")
    with pytest.raises(OSError, match="Is a symbolic link"):
        write_atomically(tmp_path / "device", "0")
    with pytest.raises(OSError, match="Is a symbolic link, which is not followed") as refused:
        write_together({tmp_path / "first": "1", tmp_path / "link": "2"})
    assert refused.value.filename == str(tmp_path / "link")
    assert {p.name for p in tmp_path.iterdir()} == {"target", "link", "dangling", "device"}
    write_together({followed(tmp_path / "link"): "1", followed(tmp_path / "dangling"): "2"})
    assert [(tmp_path / name).read_text() for name in ("target", "new")] == ["1", "2"]
    assert (tmp_path / "link").is_symlink()


def test_links_under_temporary_names_lead_nowhere(tmp_path):
    (tmp_path / "outside").write_text("kept")
    for name in (".file.tmp", ".file.0123456789abcdef.tmp", ".lock"):
        (tmp_path / name).symlink_to("outside")
    write_atomically(tmp_path / "file", "new")
    with pytest.raises(OSError, match="symbolic links"):
        open_locked(tmp_path / ".lock")
    assert (tmp_path / "outside").read_text() == "kept"


def test_devices_and_pipes_are_written_to_as_streams(tmp_path):
    write_atomically(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'$"):
        write_together({tmp_path / "first": "1", Path("/dev/full"): "2"})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        write_atomically(tmp_path / "pipe", "nobody reads this")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", ["/dev/stdout", "link"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_output_as_a_file_keeps_what_is_printed(tmp_path, name, kind):
    (tmp_path / "link").symlink_to("/dev/stdout")
    program = """if True:
        import sys; from pathlib import Path; from distill.files import followed, write_together
        print("before"); write_together({followed(Path(sys.argv[1])): "between\\n"}); print("after")"""
    with open(tmp_path / "out", "wb") as out:
        stdout = {"pipe": subprocess.PIPE, "file": out}[kind]
        done = subprocess.run([sys.executable, "-c", program, name], cwd=tmp_path, stdout=stdout, env=ENVIRONMENT)
    assert (done.stdout or (tmp_path / "out").read_bytes()).split() == [b"before", b"between", b"after"]


# ----------------------------------------------------------------------------------------------- other file systems


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "ENOTSUP", "EINVAL"])
def test_where_there_are_no_locks_a_note_says_so_once(tmp_path, monkeypatch, capsys, code):
    def flock(*args):
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(files, "_noted", set())
    leftovers = [tmp_path / f".file.{i}123456789abcdef.tmp" for i in range(2)]
    for leftover in leftovers:
        leftover.touch()
    os.utime(leftovers[0], (0, 0))
    for _ in range(2):
        with open_locked(tmp_path / ".lock"):
            write_atomically(tmp_path / "file", "text")
    assert [path.exists() for path in leftovers] == [False, True]  # the other may be a living process's
    assert capsys.readouterr().err.count("\n") == 1


def test_a_lock_is_held_until_it_is_closed(tmp_path):
    first = open_locked(tmp_path / ".lock")
    assert open_locked(tmp_path / ".lock") is None
    first.close()
    open_locked(tmp_path / ".lock").close()


@pytest.mark.parametrize(
    ("code", "raises"),
    [("EINVAL", False), ("ENOTSUP", False), ("EBADF", False), ("ENOSYS", False), ("EIO", True), ("ENOSPC", True)],
)
def test_a_folder_that_cannot_be_flushed_is_no_error_but_a_failing_disk_is(tmp_path, monkeypatch, code, raises):
    fsync = os.fsync

    def fsync_of_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(getattr(errno, code), code)
        fsync(handle)

    monkeypatch.setattr("os.fsync", fsync_of_files)
    with pytest.raises(OSError, match=code) if raises else nullcontext():
        write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_a_derived_file_that_is_open_elsewhere_is_left_with_a_note(tmp_path, monkeypatch, capsys):
    def busy(*args):
        raise PermissionError(errno.EACCES, "open in another program")

    (tmp_path / "results.csv").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", busy)
        write_derived(tmp_path / "results.csv", "new")
        with pytest.raises(PermissionError):
            write_atomically(tmp_path / "result.json", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.csv", "old")]
    assert "results.csv cannot be replaced now (open in another program)" in capsys.readouterr().err
    write_derived(tmp_path / "results.csv", "new")
    assert (tmp_path / "results.csv").read_text() == "new"
