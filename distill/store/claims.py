"""Claims: files that say which process trains which unit of a run. Imports no torch.

A claim is a file in the folder ``.work`` of the run directory. Only one process can create it, on network file systems
without locks too. It names its owner, who touches it every few seconds. The claim of a dead owner is taken over: on
the same machine when the process is gone, under SLURM soon after its job has left the queue, otherwise when nobody has
touched it for a minute by the clock of the file system.

A suspended owner may be presumed dead and lose its claim. It then gets ClaimLostError from ``check``, which is called
before every write of a model. Between check and write there is a moment in which two processes can write the same
model. Both then write whole files, which are equal on equal hardware, because randomness is a function of (seed,
purpose, step, epoch).
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from distill.files import open_file, refuse_link, temporary_name, write_atomically
from distill.store import slurm

WORK = ".work"
BEAT = 5.0  # seconds between two touches of a claim
SILENCE = 60.0  # seconds without a touch after which an owner is presumed dead
GONE = 15.0  # the same for an owner whose SLURM job has left the queue
TORN = 2.0  # seconds after which a claim without content is that of a process that died as it wrote it
MARKER = 10.0  # seconds after which the marker of a process that was removing a claim is taken for a leftover


def _machine() -> str:
    """The host, its boot and the namespace of process numbers, within which a process number has a meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """When a process started, as its system counts; None if there is no such process any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


@dataclass(frozen=True)
class Owner:
    """The process that holds a claim."""

    token: str = field(default_factory=lambda: secrets.token_hex(8))  # of this claim
    host: str = field(default_factory=socket.gethostname)
    machine: str = field(default_factory=_machine)
    pid: int = field(default_factory=os.getpid)
    born: str | None = field(default_factory=lambda: _born(os.getpid()))
    job: str | None = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    array: str | None = field(default_factory=lambda: os.environ.get("SLURM_ARRAY_JOB_ID"))
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))  # local time
    deaths: int = 0  # of owners before, one after the other, in jobs of the same array

    def __str__(self) -> str:
        if self.pid == 0:
            return "an unknown process"
        job = "" if self.job is None else f"job {self.job}, "
        return f"{job}process {self.pid} on {self.host}"


_held: set[str] = set()  # the tokens of this process's claims
_current: ContextVar[tuple[Path, Owner] | None] = ContextVar("claim", default=None)


class ClaimLostError(Exception):
    """Another process has presumed this one dead and taken over its claim."""


@contextmanager
def claim(run: Path, name: str) -> Iterator[Owner | None]:
    """Hold the claim of a name in the block, or get None because a living process holds it.

    Raises OSError, also for a link.
    """
    file = run / WORK / f"{name}.claim"
    owner = Owner()
    for path in (file.parent, file):
        refuse_link(path)
    file.parent.mkdir(exist_ok=True)
    stop = threading.Event()
    beat = threading.Thread(target=_touch, args=(file, stop), daemon=True)
    try:
        _held.add(owner.token)
        held = _create(file, owner)
        if held is None:
            yield None
            return
        beat.start()
        before = _current.set((file, held))
        try:
            yield held
        finally:
            _current.reset(before)
    finally:
        stop.set()
        if beat.ident is not None:
            beat.join()
        _held.discard(owner.token)
        with suppress(OSError):  # the run was deleted, or its disk fails
            _remove(file, owner.token)


def check() -> None:
    """Raise ClaimLostError if this thread has lost the claim in whose block it is. Raises OSError."""
    current = _current.get()
    if current is None:
        return
    file, owner = current
    if not _has_token(file, owner.token) and (file.parents[1] / "config.toml").exists():  # otherwise the run is gone
        raise ClaimLostError(f"lost the claim {file}")


def holder(run: Path, name: str) -> Owner | None:
    """The living process that holds a claim, if any."""
    file = run / WORK / f"{name}.claim"
    try:
        owner, touched = _read(file)
        return None if _is_dead(file, owner, touched) else owner or Owner(host="?", pid=0)
    except FileNotFoundError:
        return None


def holders(run: Path) -> dict[str, Owner]:
    """The living owners of all claims in a run, by name."""
    names = [file.stem for file in (run / WORK).glob("*.claim") if file.is_file()]
    return {name: owner for name in names if (owner := holder(run, name)) is not None}


def remove_dead(run: Path) -> None:
    """Remove the claims of dead processes."""
    for file in (run / WORK).glob("*.claim"):
        if file.is_file():
            with suppress(FileNotFoundError):
                owner, touched = _read(file)
                if _is_dead(file, owner, touched):
                    _remove(file, owner.token if owner else None)


@contextmanager
def turn(run: Path, name: str) -> Iterator[None]:
    """Run a short block while no other process is in it. After ten seconds of waiting the block runs anyway."""
    until = time.monotonic() + 10
    while True:
        with claim(run, name) as owner:
            if owner is not None or time.monotonic() > until:
                yield
                return
        time.sleep(0.02)


def begin(run: Path) -> float:
    """The time now by the clock of the run's file system, after which failures are new. Raises OSError.

    Failures with a date in the future, given by a clock that was set back since, are dated back.
    """
    now = clock(run)
    for file in (run / WORK).glob("*.failed"):
        with suppress(OSError):
            if file.lstat().st_mtime > now + BEAT:
                os.utime(file, (now - BEAT, now - BEAT), follow_symlinks=False)
    return now


def clock(run: Path) -> float:
    """The time now by the clock of the run's file system, as ``st_mtime`` gives it. Raises OSError."""
    probe = temporary_name(run / WORK / "clock")
    try:
        with open(probe, "xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        with suppress(OSError):
            probe.unlink()


def _touch(file: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):
            os.utime(file)


def _create(file: Path, owner: Owner) -> Owner | None:
    """Create a claim, in the place of a dead owner's if need be; None if a living process holds it."""
    for _ in range(10):
        try:
            with open(file, "xb") as new:
                new.write(json.dumps(asdict(owner)).encode())
            return owner
        except FileExistsError:
            try:
                there, touched = _read(file)
            except FileNotFoundError:
                continue
            if not _is_dead(file, there, touched):
                return None
            _remove(file, there.token if there else None)
            if there is not None and owner.array is not None and there.array == owner.array:
                owner = replace(owner, deaths=there.deaths + 1)
    return None


def _read(file: Path) -> tuple[Owner | None, float]:
    """The owner of a claim, None if it has no whole content, and when it was touched. Raises FileNotFoundError."""
    with open_file(file) as opened:  # opened, because a network file system then asks its server
        touched = os.fstat(opened.fileno()).st_mtime
        try:
            return Owner(**json.loads(opened.read(10_000))), touched
        except (ValueError, TypeError, RecursionError):
            return None, touched


def _is_dead(file: Path, owner: Owner | None, touched: float) -> bool:
    silence = SILENCE
    if owner is None:
        silence = TORN
    elif owner.machine and owner.machine == _machine():
        mine = owner.pid == os.getpid() and owner.token not in _held  # an interrupt came as it was created
        return mine or _born(owner.pid) != owner.born
    elif owner.job is not None and slurm.has_left_queue(owner.job):
        silence = GONE
    age = clock(file.parents[1]) - touched
    if age < -BEAT:  # the clock was set back since: count the silence from now
        with suppress(OSError):  # the directory may only be read
            os.utime(file)
    return age > silence


def _remove(file: Path, token: str | None) -> None:
    """Remove a claim if it is still the one with this token. One process at a time may: the one that made a marker."""
    if not _has_token(file, token):
        return
    marker = file.with_name(f".{file.name[:40]}.{token or '0' * 16}.tmp")
    try:
        open(marker, "xb").close()
    except FileExistsError:
        with suppress(FileNotFoundError):
            if clock(file.parents[1]) - marker.stat().st_mtime > MARKER:
                marker.unlink()  # its process died
        return
    try:
        if _has_token(file, token):
            file.unlink()
    finally:
        marker.unlink(missing_ok=True)


def _has_token(file: Path, token: str | None) -> bool:
    try:
        owner, _ = _read(file)
    except FileNotFoundError:
        return False
    return (owner.token if owner else None) == token


@dataclass(frozen=True)
class Failure:
    """Why a unit could not be trained: its last error."""

    message: str
    array: str | None = None  # of SLURM
    time: float = 0.0  # by the clock of the file system

    def is_new(self, since: float) -> bool:
        """Whether it came after a time by that clock, or in the same array of jobs: then trying again is of no use."""
        return self.time >= since or (self.array is not None and self.array == os.environ.get("SLURM_ARRAY_JOB_ID"))


def write_failure(run: Path, name: str, message: str) -> None:
    """Note that the unit of a claim failed. Raises OSError."""
    content = {"message": message, "array": os.environ.get("SLURM_ARRAY_JOB_ID")}
    write_atomically(run / WORK / f"{name}.failed", json.dumps(content))


def read_failure(run: Path, name: str) -> Failure | None:
    """Why the unit of a claim failed, if it did."""
    try:
        with open_file(run / WORK / f"{name}.failed") as file:
            return Failure(**json.loads(file.read(10_000)), time=os.fstat(file.fileno()).st_mtime)
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def remove_failure(run: Path, name: str) -> None:
    """Forget that the unit of a claim failed. Raises OSError."""
    (run / WORK / f"{name}.failed").unlink(missing_ok=True)
