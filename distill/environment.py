"""Settings of the process that must be made before torch is loaded, and the cores it may use."""

import os

SETTINGS = {
    # OpenMP's waiting threads spin for milliseconds before they sleep. With any other process on the cores that made a
    # ResNet-20 at batch 128 three times slower on 2 cores; alone, spinning gains nothing.
    "GOMP_SPINCOUNT": "20000",
    # CUDA has 8 queues for all streams by default: with more jobs, streams that share a queue wait for each other.
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
}


def set_environment() -> None:
    """Set the environment variables in ``SETTINGS``, except those that are set already.

    torch reads them when it is loaded and when CUDA is first used. Importing ``distill.running`` calls this.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def available_cores() -> int:
    """The number of cores that this process may use; all cores if the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
