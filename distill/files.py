"""Reading of regular files, atomic writing, and SHA-256."""

import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from distill.program import complain

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
    """Write a file whole or not at all. Raises OSError, also for a link and if its folder does not exist."""
    refuse_link(path)  # to a device too
    write_together({path: content})


def write_together(files: Mapping[Path, Content]) -> None:
    """Write several files, each whole or not at all, and none if one of them cannot be written. Raises OSError.

    All are flushed to the disk under temporary names beside their own before the first is renamed. What a killed
    process left under such names is removed. A device or a pipe is written to as a stream. A symbolic link is refused,
    because it may lead out of the folder that the user named. To write to its file, pass ``followed(path)``.
    """
    with ExitStack() as temporaries:
        streams = [path for path in files if _is_stream(path)]
        written = {}
        for path, content in files.items():
            if path not in streams:
                with _errors_name(path):
                    written[path] = temporaries.enter_context(_temporary(path))
                    _write(written[path], content)
                    _sync(written[path].fileno())
        for path in streams:  # last, because what is written cannot be taken back
            with _errors_name(path), _open_stream(path) as stream:
                _write(stream, files[path])
        for path, file in written.items():
            if os.name == "nt":
                file.close()  # Windows renames no open file
            with _errors_name(path):
                os.replace(file.name, path)
    for folder in {path.parent for path in written}:
        _sync_folder(folder)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Make an OSError name the file that was to be written, rather than its temporary name or none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def append(path: Path, size: int, data: memoryview) -> None:
    """Cut a file, made if needed, to ``size`` bytes, append ``data`` and flush it to the disk.

    Raises OSError, also for a link.
    """
    refuse_link(path)
    with _errors_name(path), open(path, "ab") as file:
        file.truncate(size)
        file.write(data)
        file.flush()
        _sync(file.fileno())


def write_derived(path: Path, content: Content) -> bool:
    """Write a file that can be made again at any time; if another program keeps it from being replaced, note that.

    Returns whether it was written.
    """
    try:
        write_atomically(path, content)
        return True
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY, errno.ELOOP}:
            raise
        note_once(f"note: {path} cannot be replaced now ({error.strerror}); the same command writes it later")
        return False


def followed(path: Path) -> Path:
    """The path without symbolic links; its file need not exist. Devices and pipes are returned unchanged."""
    return path if _is_stream(path) else Path(os.path.realpath(path))


def _is_stream(path: Path) -> bool:
    """Whether a path is neither a file nor a folder, or is where standard output or error goes."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) or _standard_stream(found) is not None


def _standard_stream(found: os.stat_result) -> int | None:
    """1 or 2 if standard output or error goes to this file. Replacing it would lose what is printed."""
    for number in (1, 2):
        with suppress(OSError):  # closed
            if os.path.samestat(os.fstat(number), found):
                return number
    return None


def _open_stream(path: Path) -> BinaryIO:
    """Open a device or a pipe for writing. Raises OSError, at once if nobody reads from a pipe."""
    number = _standard_stream(os.stat(path))
    if number is not None:
        for text in filter(None, (sys.stdout, sys.stderr)):
            text.flush()
        return open(os.dup(number), "wb")
    handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    os.set_blocking(handle, True)
    return open(handle, "wb")


def _write(file: BinaryIO, content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
    file.flush()


@contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``, locked while it is open, so that no other process takes it for a leftover.

    An error removes it. Raises OSError.
    """
    refuse_link(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "Its folder does not exist", str(path))
    remove_leftovers(path.parent, path.name)
    while True:
        name = temporary_name(path)
        try:
            with open(name, "xb") as file:  # a new file, never through a link
                take_lock(file.fileno(), wait=True)
                if name.exists():  # not removed before it was locked
                    yield file
                    return
        except BaseException:
            with suppress(OSError):
                name.unlink()
            raise


def refuse_link(path: Path) -> None:
    """Raise OSError for a symbolic link: it may lead out of the folder that the user named."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "Is a symbolic link, which is not followed; delete it", str(path))


def temporary_name(path: Path) -> Path:
    """A new temporary name beside ``path``: it says on which host it was made."""
    return path.with_name(f"{_prefix(path.name)}.{secrets.token_hex(8)}.{_HOST}.tmp")


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _prefix(name: str) -> str:
    """How the temporary names of a file begin: short enough for every file system."""
    return f".{name[:40]}"


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files of killed processes: of ``name`` in ``folder`` or, without ``name``, all below it."""
    begins = re.escape(_prefix(name)) if name is not None else r"\..+"
    pattern = re.compile(rf"{begins}(\.[0-9a-f]{{16}}(\.[0-9a-f]{{8}})?)?\.tmp")
    for place, folders, names in os.walk(folder):
        for found in filter(pattern.fullmatch, names):
            with suppress(OSError):  # removed by another, or no file
                _remove_unlocked(os.path.join(place, found))
        if name is not None:
            folders.clear()


def _remove_unlocked(path: str) -> None:
    """Remove a temporary file if no living process holds its lock.

    Locks may not exist, or not reach as far as another host: then it must be a day old.
    """
    if os.name == "nt":
        os.unlink(path)  # fails while a process has it open
        return
    handle = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    try:
        locked = take_lock(handle, wait=False)
        elsewhere = re.search(rf"\.[0-9a-f]{{16}}\.(?!{_HOST})[0-9a-f]{{8}}\.tmp$", path)
        old = os.fstat(handle).st_mtime < time.time() - 86_400
        if (locked and not elsewhere) or (locked is not False and old):
            os.unlink(path)
    finally:
        os.close(handle)


def open_locked(path: Path) -> BinaryIO | None:
    """Open a lock file, made if needed, that is locked until closed; None if another process has it.

    Where the file system has no locks, a note on standard error says so once. Raises OSError, also for a link.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    file = open(os.open(path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115 - the caller closes it
    try:
        _require_regular(str(path), os.fstat(file.fileno()))
        held = take_lock(file.fileno(), wait=False)
    except BaseException:
        file.close()
        raise
    if held is False:
        file.close()
        return None
    if held is None and os.name != "nt":
        note_once(f"note: the file system of {path.parent} has no locks: let no two processes work there")
    return file


def take_lock(handle: int, wait: bool) -> bool | None:
    """Lock an open file until it is closed. False if another has the lock; None if the file system has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}:
            return False
        if error.errno in _UNSUPPORTED:
            return None
        raise


_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ENOTTY}
_noted: set[str] = set()


def note_once(text: str) -> None:
    """Print a note on standard error, unless this process has done so."""
    if text not in _noted:
        _noted.add(text)
        complain(text)


def _sync(handle: int) -> None:
    """Flush an open file or folder to the disk, if its file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: only then does a rename survive a power cut."""
    if os.name == "posix":
        try:
            handle = os.open(folder, os.O_RDONLY)
        except PermissionError:  # it may be written to, but not read
            return
        try:
            _sync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
