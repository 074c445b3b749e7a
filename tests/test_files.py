"""files.py: a file is whole or not there, whatever happens while it is written."""

import errno
import os
import socket

import pytest

from distill.files import open_file, read_text, sha256, write_atomically, write_together


@pytest.mark.parametrize("content", ["naïve\n", "naïve\n".encode(), lambda file: file.write("naïve\n".encode())])
def test_write_takes_text_bytes_and_writers(tmp_path, content):
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == "naïve\n".encode()


def test_a_folder_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
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


def test_write_replaces_what_a_killed_process_left(tmp_path):
    (tmp_path / ".file.tmp").write_text("torn")
    write_atomically(tmp_path / "file", "whole")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "whole")]


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
