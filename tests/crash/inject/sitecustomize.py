"""Faults in the file operations of a program. Python loads this at its start if its folder is in PYTHONPATH.

Every open, write, fsync, rename, link, unlink, mkdir and rmdir inside one directory is counted, by all
processes of a run together: each appends a record of fixed length to one file, whose length is then the count. At a
given count the fault happens: a signal that nothing can catch, or an OSError. A write is then torn in the middle. A
power cut kills all processes, and files that this process has not flushed since it wrote to them lose half their bytes.

``CRASH_INSIDE`` names the directory, ``CRASH_TRACE`` the file of records, ``CRASH_FAULT`` is ``ACTION:COUNT`` or empty.
"""

import builtins
import errno
import io
import os
import signal

RECORD = 160  # bytes of a record
READ = "read"  # an open for reading only
WORKER = "worker"  # kills only a worker process
KILLS = ("kill", WORKER, "parent", "group", "power")
PATH_LAST = ("replace", "rename", "link", "symlink")  # the path that appears is their second argument
PATH_FIRST = ("unlink", "remove", "mkdir", "rmdir", "fsync", "truncate")
REAL = {name: getattr(os, name) for name in (*PATH_LAST, *PATH_FIRST, "open", "write")}
REAL_OPEN = io.open


class Injection:
    """The counter of one process, and the fault."""

    def __init__(self, inside: str, trace: str, fault: str) -> None:
        self.inside = os.path.realpath(inside)
        self.trace_file = trace
        self.unflushed: set[str] = set()
        self.trace = -1
        self.process = 0  # that has opened it: a fork would share the position
        action, _, count = fault.partition(":")
        self.action = action
        self.at = int(count or 0)

    def place(self, path: object, folder: int | None = None) -> str | None:
        """The path inside the directory, "" for the directory itself, and None outside."""
        try:
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            elif folder is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
            whole = os.path.abspath(os.fsdecode(path))
        except (OSError, TypeError):
            return None
        whole = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
        if whole != self.inside and not whole.startswith(self.inside + os.sep):
            return None
        return whole[len(self.inside) + 1 :]

    def is_hit(self, call: str, path: object, folder: int | None = None) -> bool:
        """Count a call, and say whether the fault is now."""
        place = self.place(path, folder)
        if place is None:
            return False
        if self.process != os.getpid():
            self.process = os.getpid()
            self.trace = REAL["open"](self.trace_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        role = "main" if os.getpid() == os.getpgrp() else WORKER
        record = f"{role} {call} {place}".encode()[: RECORD - 1].ljust(RECORD - 1) + b"\n"
        REAL["write"](self.trace, record)
        count = os.lseek(self.trace, 0, os.SEEK_CUR) // RECORD  # the end of what this process appended
        if count == self.at:
            return True
        if call == "write":
            self.unflushed.add(place)
        elif call == "fsync":
            self.unflushed.discard(place)
        return False

    def fail(self, path: object) -> None:
        """Do what the fault is."""
        if self.action not in KILLS:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number), path if isinstance(path, str) else str(path))
        victim = os.getpid()
        if self.action == "power":
            for place in self.unflushed:
                name = os.path.join(self.inside, place)
                if os.path.exists(name):
                    REAL["truncate"](name, os.stat(name).st_size // 2)
        if self.action in ("group", "power"):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        elif self.action == "parent":
            victim = os.getpgrp()
        elif self.action == WORKER and victim == os.getpgrp():
            import multiprocessing

            workers = multiprocessing.active_children()
            if not workers:
                return
            victim = workers[0].pid or victim
        os.kill(victim, signal.SIGKILL)

    def before(self, call: str, path: object, folder: int | None = None) -> None:
        """Count a call; kill or raise if the fault is now."""
        if self.is_hit(call, path, folder):
            self.fail(path)


def install(inside: str, trace: str, fault: str) -> None:
    """Count, and fail, from now on in this process."""
    injection = Injection(inside, trace, fault)
    for name in PATH_LAST:
        setattr(os, name, _second_path(injection, name))
    for name in PATH_FIRST:
        setattr(os, name, _first_path(injection, name))
    os.open = _os_open(injection)
    os.write = _os_write(injection)
    io.open = builtins.open = _open(injection)


def _second_path(injection: Injection, name: str):
    def call(source, path, *rest, **options):
        injection.before(name, path, options.get("dst_dir_fd", options.get("dir_fd")))
        before = injection.place(source)
        if before in injection.unflushed:
            injection.unflushed = injection.unflushed - {before} | {injection.place(path) or before}
        return REAL[name](source, path, *rest, **options)

    return call


def _first_path(injection: Injection, name: str):
    def call(path, *rest, **options):
        injection.before(name, path, options.get("dir_fd"))
        return REAL[name](path, *rest, **options)

    return call


def _os_open(injection: Injection):
    def replacement(path, flags, *rest, **options):
        call = "open" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else READ
        injection.before(call, path, options.get("dir_fd"))
        return REAL["open"](path, flags, *rest, **options)

    return replacement


def _os_write(injection: Injection):
    def call(handle, data):
        if injection.is_hit("write", handle):
            written = REAL["write"](handle, bytes(data)[: len(data) // 2])
            injection.fail(handle)
            return written  # another process was killed: to this one it is a short write
        return REAL["write"](handle, data)

    return call


def _open(injection: Injection):
    class Raw(io.FileIO):
        def write(self, data):
            if injection.is_hit("write", self.fileno()):
                content = bytes(data)
                written = super().write(content[: len(content) // 2])
                injection.fail(self.name)
                return written
            return super().write(data)

    def call(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not set(mode) & set("wax+") or injection.place(file) is None:
            if not isinstance(file, int):
                injection.before(READ, file)
            return REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            injection.before("open", file)
        raw = Raw(file, mode.replace("t", "").replace("b", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode
        return text

    return call


if "CRASH_TRACE" in os.environ:
    install(os.environ["CRASH_INSIDE"], os.environ["CRASH_TRACE"], os.environ["CRASH_FAULT"])
