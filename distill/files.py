"""Reading of regular files, atomic writing, and SHA-256."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

Content = str | bytes | Callable[[BinaryIO], object]  # text (UTF-8), bytes, or a function that writes to the open file


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; never waits. Raises OSError, for folders, pipes, sockets and devices too."""
    return open(path, "rb", opener=_open_regular)


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The text of a regular file. Raises OSError, and UnicodeDecodeError."""
    with open_file(path) as file:
        return file.read().decode(encoding)


def _open_regular(path: str, flags: int) -> int:
    """Open a path without waiting for the other end of a pipe."""
    _require_regular(path, os.stat(path))  # opening a socket fails, and opening a device may act on it
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(path, os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return handle


def _require_regular(path: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file but a pipe, a socket or a device", path)


def write_atomically(path: Path, content: Content) -> None:
    """Write a file whole or not at all. Raises OSError, also if its folder does not exist."""
    write_together({path: content})


def write_together(files: Mapping[Path, Content]) -> None:
    """Write several files, each whole or not at all, and none if one of them cannot be written. Raises OSError.

    All are flushed to the disk under temporary names beside their own before the first is renamed. The temporary names
    are fixed, so that what a killed process left is replaced by the next write: one process at a time.
    """
    temporaries = {path: path.with_name(f".{path.name}.tmp") for path in files}
    for path in files:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the folder does not exist (any more)", str(path.parent))
    try:
        for path, content in files.items():
            with open(temporaries[path], "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: only then does a rename survive a power cut."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
