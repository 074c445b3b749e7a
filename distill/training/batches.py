"""A training set in memory, and its augmented images in chunks and mini-batches.

Images are kept in device memory as uint8, vectors as float32. If they do not fit, they stay on the host, and each chunk
is copied while the one before is trained on. A chunk is about a thousand images, which are gathered and augmented
together. Images of a memory-mapped file stay in the file, unless they fit into the memory of another device than the
CPU.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.source import MappedImages, is_mapped
from distill.data.splits import Split
from distill.training import augment

CHUNK_PIXELS = 2**20  # per chunk: 1,024 images of CIFAR
RESIDENT_SHARE = 0.5  # the largest share of free device memory for a training set; a larger one stays on the host
_per_thread = threading.local()


@dataclass(frozen=True)
class ImageStore:
    """A split in memory, on the device or (pinned) on the host, or in a memory-mapped file."""

    images: Tensor  # (n, c, h, w) uint8, or float32 for vectors; with ``rows``, more images than these
    labels: Tensor  # (n,) int64, on the device
    device: torch.device
    rows: Tensor | None = None  # (n,) int64 on the host: positions in ``images``; None: all, in order

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, at: Tensor | slice) -> Tensor:
        """The images (m, c, h, w) at positions ``at``."""
        return self.images[at if self.rows is None else self.rows[at]]


@dataclass(frozen=True)
class Batch:
    """Images with their targets: a mini-batch, or a chunk of several."""

    images: Tensor  # (m, c, h, w) uint8, or float32 for vectors
    given: Tensor  # (m, classes) float32, the given labels as one-hot rows
    soft: Tensor | None  # (m, classes) float32, the teacher's part of the target; None without a teacher

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.images[rows], self.given[rows], None if self.soft is None else self.soft[rows])


def make_image_store(split: Split, device: torch.device, resident: bool | None = None) -> ImageStore:
    """Put a split into device memory if it takes at most half of what is free, else into pinned host memory.

    On a CUDA device ``resident``, if given, decides instead. A memory-mapped split that is not resident stays mapped.
    """
    source = split.images
    rows = None
    if isinstance(source, MappedImages):
        rows = torch.from_numpy(source.rows)
        source = source.whole
    with warnings.catch_warnings(action="ignore"):  # nothing may write to mapped images, and nothing does
        images = torch.from_numpy(source)
    # Normalise strides: an axis of length 1 may have any stride, and torch chooses kernels, which differ in the last
    # bits, by strides.
    images = images.flatten().view(source.shape)
    labels = torch.from_numpy(split.labels).to(device)
    if device.type == "cuda" and resident is None:
        resident = split.images.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and resident):
        return ImageStore((images if rows is None else images[rows]).to(device), labels, device)
    if device.type == "cuda" and not is_mapped(source):
        images = images.pin_memory()
    return ImageStore(images, labels, device, rows)


def chunk_size(store: ImageStore, batch_size: int) -> int:
    """Images per chunk: about CHUNK_PIXELS pixels, and a multiple of the batch size."""
    h, w = store.images.shape[2:]
    return max(1, CHUNK_PIXELS // (h * w * batch_size)) * batch_size


def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The copy stream of this thread and device. A new one might be in use already: torch reuses 32 in turn."""
    streams = _per_thread.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]


def chunks(store: ImageStore, plan: augment.Plan, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images (m, c, h, w) and labels (m,) on the device, in the plan's order.

    Images on the host are copied one chunk ahead.
    """
    resident = store.images.device.type == store.device.type
    copy_stream = None if resident else _copy_stream(store.labels.device)
    order = plan.order
    plan = plan.to(store.device)  # waits for the device, once an epoch

    def fetch(start: int) -> Tensor:
        if copy_stream is None:
            return store.gather(plan.order[start : start + size])
        with torch.cuda.stream(copy_stream):
            return store.gather(order[start : start + size]).pin_memory().to(store.device, non_blocking=True)

    next_images = fetch(0)
    for start in range(0, len(plan), size):
        images = next_images
        part = plan[start : start + size]
        if copy_stream is not None:
            torch.cuda.current_stream().wait_stream(copy_stream)
            images.record_stream(torch.cuda.current_stream())
        if start + size < len(plan):
            next_images = fetch(start + size)
        yield augment.apply(images, part), store.labels[part.order]
