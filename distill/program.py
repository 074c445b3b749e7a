"""The frame of every program: streams that take any text, signals, and errors as one line with an exit status."""

import _thread
import codecs
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO

from distill.errors import UserError, one_line, printable

PLAIN = {"±": "+-", "∞": "inf", "²": "^2", "³": "^3", "√": "sqrt ", "·": "*", "é": "e"}  # if an encoding lacks them
STOPPING = [number for number in signal.Signals if number.name in ("SIGHUP", "SIGINT", "SIGTERM")]
LEAST_MEMORY = 10**9  # bytes of address space
CLOSED_PIPE = 141  # the exit status of a program that SIGPIPE ends


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP. Unless it reaches ``run_program``, it is raised again."""

    def __init__(self, signals: "Signals", number: int) -> None:
        super().__init__()
        self.signals = signals
        self.number = number

    def __del__(self) -> None:
        self.signals.raise_again(self.number)


class OutputError(OSError):
    """Standard output that cannot be written to."""


def heeded() -> list[int]:
    """The signals that stop this process: those of ``STOPPING`` that it does not ignore, as nohup lets it do."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


def program_name(script: str, command: str) -> str:
    """The name that the user typed: the ``script`` of the checkout or the installed ``command``."""
    typed = Path(sys.argv[0]).name
    return typed if typed == command else script


def run_program(program: str, work: Callable[[], int], after_stop: str = "", after_failure: str = "") -> int:
    """Run ``work()`` as the whole of a program. Returns the exit status.

    The status is that of ``work``; 2 after a user's error or an OSError, which is one line on standard error; 129, 130
    or 143 if a signal stopped it; 141 without a word if the reader of a pipe has left. ``after_stop`` and
    ``after_failure`` end the lines about a signal and an OSError.
    """
    with _prepared_streams(), Signals() as signals:
        return _run(program, work, signals, after_stop, after_failure)


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP in a ``with`` block of the main thread; in other threads, they are the caller's.

    A signal waits for ``check``, or is raised at any moment after ``raise_at_once``. Only the first is raised: those
    that follow come while the program cleans up. The third ends the process, and its child processes, at once. Python
    calls no handler while a library such as LAPACK computes in the main thread; all signals wait for its return.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.raised: int | None = None  # the signal that was raised
        self.at_once = False
        self.before: dict[int, Any] = {}
        self.hook = sys.unraisablehook

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                self.before[number] = signal.signal(number, self._receive)
                sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, *error: object) -> None:
        self.at_once = False
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            sys.unraisablehook = self.hook

    def raise_at_once(self) -> None:
        """Raise a signal at any moment from now on, or now if one has come."""
        self.at_once = True
        self.check()

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.received:
            self.raised = self.received[0]
            raise Stopped(self, self.raised)

    def raise_again(self, number: int) -> None:
        """Raise a signal again after 10 ms: its exception was swallowed, and the program still runs.

        Python swallows exceptions in some callbacks, such as ``__del__`` and those of weak references, which imports
        have; so do libraries.
        """
        if self.at_once:
            self.received.clear()
            _thread.start_new_thread(self._deliver, (number,))

    def _deliver(self, number: int) -> None:
        time.sleep(0.01)  # seconds, in which a callback ends
        if self.at_once and not self.received:
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, number)  # wakes it, too
            else:  # Windows
                _thread.interrupt_main(signal.Signals(number))

    def _unraisable(self, swallowed: "sys.UnraisableHookArgs") -> None:
        if not isinstance(swallowed.exc_value, Stopped):
            self.hook(swallowed)

    def _receive(self, number: int, frame: object) -> None:
        self.received.append(number)
        if len(self.received) > 2:
            try:
                children = getattr(sys.modules.get("multiprocessing"), "active_children", list)  # it may be half loaded
                for process in children():
                    process.kill()
            finally:  # another thread may be changing the set of children
                os._exit(128 + number)
        if self.at_once and len(self.received) == 1:
            self.check()


def _run(program: str, work: Callable[[], int], signals: Signals, after_stop: str, after_failure: str) -> int:
    try:
        try:
            signals.raise_at_once()
            _check_memory_limit()
            status = work()
        except SystemExit:  # --help
            write_out("")
            raise
        finally:
            signals.at_once = False
        write_out("")  # flush here, because a failure at the interpreter's end would be a traceback
        return status
    except BaseException as error:
        if signals.raised is None and not isinstance(error, KeyboardInterrupt):
            return _failed(program, error, after_failure)
        # Some libraries turn what a signal raises into another error.
        newline = "\n" if sys.stderr.isatty() else ""  # the terminal shows ^C
        complain(f"{newline}stopped{after_stop}")
        return 128 + (signals.raised or signal.SIGINT)


def _check_memory_limit() -> None:
    """Raise UserError if the process may have so little memory that NumPy's BLAS asks for it in vain for ever."""
    with suppress(ImportError):  # Windows
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if 0 <= limit < LEAST_MEMORY:  # -1: no limit
            raise UserError(
                f"the memory limit (ulimit -v) is {limit / 1e9:.2g} GB: raise it to {LEAST_MEMORY / 1e9:g} GB or more"
            )


def _failed(program: str, error: BaseException, after_failure: str) -> int:
    """Report an error of the user's or of the system's; returns the exit status. Raises any other error."""
    if isinstance(error, BrokenPipeError | OutputError):
        _discard(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE
    if isinstance(error, UserError | OutputError):
        return refuse(program, error)
    if isinstance(error, OSError):
        return refuse(program, f"{one_line(error)}{after_failure}")
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return refuse(program, f"the memory limit (ulimit -v) is too small to load a library: raise it ({error})")
    loaded = _packages_being_loaded(error)
    variables = [name for name in os.environ if any(package.upper() in name for package in loaded)]
    if variables and not isinstance(error, ImportError):  # libraries read variables as they are loaded
        what = f"{' and '.join(loaded)} cannot be loaded with {' '.join(variables)} in the environment"
        return refuse(program, f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
    raise error


def _packages_being_loaded(error: BaseException) -> list[str]:
    """The other packages whose modules were being imported when an error was raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    packages = dict.fromkeys(frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames)
    return [name for name in packages if name not in ("", "__main__", "distill")]


def refuse(program: str, error: BaseException | str) -> int:
    """Print an error of the user's as one line on standard error; returns the exit status 2."""
    complain(f"{program}: error: {one_line(error)}")
    return 2


def say(text: str) -> None:
    """Print on standard output, without characters that control a terminal. Raises as ``write_out`` does."""
    write_out(f"{printable(text)}\n")


def write_out(text: str) -> None:
    """Write to standard output and flush it. Raises BrokenPipeError and OutputError."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def complain(text: str) -> None:
    """Print on standard error. Says nothing if that is closed or full."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


@contextmanager
def _prepared_streams() -> Iterator[None]:
    """Let standard output and error take any text: replace missing streams, and characters an encoding lacks.

    At the end, the environment and the streams' handlers of errors are again as they were.
    """
    left_out = {  # libraries refuse to be imported if they cannot read one of these
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith("TQDM_") and name != "TQDM_DISABLE") or name == "SOURCE_DATE_EPOCH"
    }
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would get its number, and then the text meant for it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        elif errors := getattr(stream, "errors", None):  # other streams have no encoding
            before.append((stream, errors))
            _set_errors(stream, "distill.plain")
    try:
        yield
    finally:
        os.environ.update(left_out)
        for stream, errors in before:
            _set_errors(stream, errors)


def _set_errors(stream: Any, handler: str) -> None:
    """Choose what a stream does with characters that its encoding lacks."""
    with suppress(OSError, ValueError, AttributeError):  # it is closed, or full
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=handler)
        else:  # a codec's writer
            stream.errors = handler


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written for characters that an encoding lacks: the handler of ``codecs``."""
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("unicode_escape").decode() for c in characters), error.end


codecs.register_error("distill.plain", _plain)


def _discard(stream: TextIO) -> None:
    """Lose what a stream still holds; the interpreter would try to write it as it ends, and complain."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
