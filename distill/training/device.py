"""The device: its choice, torch's settings, and the memory layout and precision of networks on it."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.config import TrainConfig
from distill.environment import torchrun_rank
from distill.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` names; auto takes CUDA, then MPS, then the CPU. Raises ConfigError without it.

    A rank of torchrun has the CUDA device of its number on its machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torchrun_rank()[1] > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0  # with an old driver they are unusable
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise ConfigError(f"--device {name}: {f'only {seen} CUDA devices' if seen else 'no CUDA device'} here; try cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: there is no such device here; try cpu")
    return device


def set_up(train: TrainConfig, device: torch.device, threads: int | None) -> None:
    """Set torch's global switches: threads, TF32, determinism. Raises ConfigError for a precision the device lacks."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        _keep_freed_memory()
    if train.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"--precision tf32 needs a CUDA device, not {device.type}")
    if device.type == "cuda":
        if device.index is not None:  # a bare "cuda" is the current device, and set_device refuses it
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high" if train.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = train.precision == "tf32"  # torch's own default is True
        torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # otherwise cuBLAS may sum in any order
    if train.deterministic != torch.are_deterministic_algorithms_enabled():  # the call takes 2 s for imports
        torch.use_deterministic_algorithms(train.deterministic)
        # Skip torch's NaN fill of uninitialised memory; we never read it.
        torch.utils.deterministic.fill_uninitialized_memory = not train.deterministic  # type: ignore[attr-defined]


@contextmanager
def torch_defaults() -> Iterator[None]:
    """torch's and NumPy's switches at their defaults, and afterwards as they were: a context, or a decorator.

    This makes a run independent of what its caller has set, and the caller's own work independent of the run. The
    number of threads stays as it is on entry. Generators of random numbers are restored too.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    before = {get: (get(), set_) for get, set_, _ in SWITCHES}
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))  # not otherwise: it slows every call of torch down
        try:
            for get, set_, default in SWITCHES:
                if default is not None and get() != default:
                    set_(default)
            yield
        finally:
            for get, (value, set_) in before.items():
                if get() != value:
                    set_(value)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def _switch(holder: Any, name: str, default: Any) -> tuple[Callable[[], Any], Callable[[Any], None], Any]:
    return partial(getattr, holder, name, None), partial(setattr, holder, name), default


# Each: a function that reads it, one that sets it, its default. None: it is only restored.
SWITCHES: list[tuple[Callable[[], Any], Callable[[Any], None], Any]] = [
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (torch.get_num_threads, torch.set_num_threads, None),
    _switch(torch.backends.mkldnn.conv, "fp32_precision", "none"),  # type: ignore[attr-defined]
    _switch(torch.backends.cudnn, "benchmark", False),
    _switch(torch.backends.cudnn, "deterministic", False),
]


def _keep_freed_memory() -> None:
    """Make glibc keep large freed buffers, so that the next update need not request their pages again.

    Does nothing without glibc.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        M_TRIM_THRESHOLD = -1  # malloc.h
        M_MMAP_THRESHOLD = -3
        libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # older glibc allows no more
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def channels_last(train: TrainConfig, device: torch.device) -> bool:
    """Whether convolutions get channels-last weights, and therefore channels-last feature maps.

    True on a CPU (measured, see benchmarks/README.md), and on CUDA with bf16 or tf32: tensor cores need this layout,
    and cuDNN would convert other layouts at every layer (not measured).
    """
    return device.type == "cpu" or (device.type == "cuda" and train.precision in ("bf16", "tf32"))


def place(model: nn.Module, train: TrainConfig, device: torch.device) -> nn.Module:
    """Move the model to the device. Modules with ``any_layout = True`` also get the memory layout that is faster there.

    A network sets this attribute if it works with feature maps of any memory layout. Other networks keep their layout,
    because an operation such as ``x.view(len(x), -1)`` may require it.
    """
    model = model.to(device)
    layout = torch.channels_last if channels_last(train, device) else torch.contiguous_format
    for module in model.modules():
        if getattr(module, "any_layout", False):
            module.to(memory_format=layout)
    return model


def autocast(train: TrainConfig, device: torch.device) -> AbstractContextManager:
    """A context for the forward pass in the chosen precision. Losses are computed outside it, in float32."""
    if train.precision != "bf16":
        return nullcontext()
    # On CUDA without a cache of converted weights: a pass uses each weight once, and threads would share the cache.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cuda")
