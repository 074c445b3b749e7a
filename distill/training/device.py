"""The device: which one, torch's settings for it, and a network's place and precision on it."""

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext, suppress

import torch
from torch import nn

from distill.config import TrainConfig
from distill.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` names; auto takes CUDA, then MPS, then the CPU. Raises ConfigError without it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0  # a driver too old shows devices, but has none
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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in any order
    if train.deterministic != torch.are_deterministic_algorithms_enabled():  # the call itself imports for 2 s
        torch.use_deterministic_algorithms(train.deterministic)
        # Skip torch's NaN fill of uninitialised memory; we never read it.
        torch.utils.deterministic.fill_uninitialized_memory = not train.deterministic  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed buffers; if it returned them, the next update would fault their pages in again.

    Does nothing without glibc.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        M_TRIM_THRESHOLD = -1  # malloc.h
        M_MMAP_THRESHOLD = -3
        libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most of older glibc
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def channels_last(train: TrainConfig, device: torch.device) -> bool:
    """Whether convolutions get channels-last weights, and so channels-last maps.

    Yes on a CPU, as measured in benchmarks/README.md. Yes on CUDA with bf16 and tf32, whose tensor cores need this
    layout: cuDNN would convert other operands at every layer (a rule, not measured). No otherwise.
    """
    return device.type == "cpu" or (device.type == "cuda" and train.precision in ("bf16", "tf32"))


def place(model: nn.Module, train: TrainConfig, device: torch.device) -> nn.Module:
    """Move the model to the device, and choose the memory layout of the networks in it that allow any.

    A network that works for every memory layout of its maps sets the attribute ``any_layout = True``. Its weights then
    become channels-last wherever ``channels_last`` says so, which is faster. Other networks keep their layout, because
    an operation such as ``x.view(len(x), -1)`` may require it.
    """
    model = model.to(device)
    layout = torch.channels_last if channels_last(train, device) else torch.contiguous_format
    for module in model.modules():
        if getattr(module, "any_layout", False):
            module.to(memory_format=layout)
    return model


def autocast(train: TrainConfig, device: torch.device) -> AbstractContextManager:
    """The forward pass's precision; losses are computed in float32 outside it."""
    if train.precision != "bf16":
        return nullcontext()
    # No cache of converted weights on CUDA: each is used once in a pass, and chains in threads would share the cache.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cuda")
