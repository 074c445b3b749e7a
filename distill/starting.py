"""The programs' entry points: Ctrl-C while a program's modules are loaded is one line and the exit status 130."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

_loading = True


def _stop(number: int, frame: object) -> None:
    if _loading:
        os.write(2, b"stopped\n")
    os._exit(130)  # nothing has been done that would have to be cleaned up


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)  # until ``run_program`` has its own handler


def self_distiller() -> int:
    """Run the training of chains; returns the exit status."""
    from distill.cli import main

    return run(main)


def krr_toy() -> int:
    """Run the toy experiment; returns the exit status."""
    from distill.kernel.toy.program import main

    return run(main)


def run(main: Callable[[], int]) -> int:
    """Run a program's ``main``, then ignore Ctrl-C while the interpreter ends, where it would be a traceback."""
    global _loading
    _loading = False
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # of torchrun: once, a rank aborted after its work
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    return status
