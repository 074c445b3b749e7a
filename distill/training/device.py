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
    if train.deterministic != torch.are_deterministic_algorithms_enabled():  # the call alone imports two seconds' worth
        torch.use_deterministic_algorithms(train.deterministic)
        # Else torch writes NaN over all memory that it hands out: nothing here reads it.
        torch.utils.deterministic.fill_uninitialized_memory = not train.deterministic


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed buffers: returned to the system, the next update would fault their pages in again.

    Elsewhere than on glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most of older glibc
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def channels_last(train: TrainConfig, device: torch.device) -> bool:
    """Whether convolutions take channels-last weights, and with them work on channels-last maps.

    On a CPU, where it was measured (benchmarks/README.md), and where CUDA's tensor cores multiply (bf16 and tf32):
    cuDNN would convert other operands at every layer. The latter is a rule, not measured; fp32 on CUDA stays as it is.
    """
    return device.type == "cpu" or (device.type == "cuda" and train.precision in ("bf16", "tf32"))


def place(model: nn.Module, train: TrainConfig, device: torch.device) -> nn.Module:
    """The model on the device, the weights of our own networks as ``channels_last`` has them.

    Others stay as they are: what they do with maps, such as ``x.view(len(x), -1)``, may ask for one layout.
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
