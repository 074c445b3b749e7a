"""Images in memory, and an epoch's augmented images in chunks.

Images stay uint8 in memory on the device (or on the host, where they do not fit, copied one chunk ahead). An epoch
goes by in chunks of some thousand images: a chunk is gathered and augmented at once.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.splits import Split
from distill.training import augment

CHUNK_PIXELS = 2**20  # of the images augmented at once: 1,024 of CIFAR
RESIDENT_SHARE = 0.5  # of the free device memory that a training set may take before it stays on the host
_own = threading.local()


@dataclass(frozen=True)
class ImageStore:
    """A split in memory, on the device or (pinned) on the host."""

    images: Tensor  # (n, c, h, w) uint8
    labels: Tensor  # (n,) int64, on the device
    device: torch.device

    def __len__(self) -> int:
        return len(self.labels)


def make_image_store(split: Split, device: torch.device, resident: bool | None = None) -> ImageStore:
    """Put a split into device memory where it takes no more than half of what is free, else into pinned host memory."""
    # Strides anew: an axis of one channel may have any, and by them convolutions choose their kernel and last bits.
    images = torch.from_numpy(split.images).flatten().view(split.images.shape)
    labels = torch.from_numpy(split.labels).to(device)
    if device.type == "cuda":
        if resident is None:
            resident = images.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        images = images.to(device) if resident else images.pin_memory()
    elif device.type != "cpu":
        images = images.to(device)
    return ImageStore(images, labels, device)


def chunk_size(pool: ImageStore, batch_size: int) -> int:
    """Images per chunk: about CHUNK_PIXELS, a multiple of the batch size. Depends on nothing but these two."""
    h, w = pool.images.shape[2:]
    return max(1, CHUNK_PIXELS // (h * w * batch_size)) * batch_size


def _copy_stream(device: torch.device):
    """This thread's own: torch has 32 streams a device and gives them out in turn: a new one may be another's."""
    streams = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]


def chunks(pool: ImageStore, plan: augment.Plan, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images (m, c, h, w) uint8 and labels (m,) on the device, in the plan's order, fetched a chunk ahead."""
    resident = pool.images.device.type == pool.device.type
    ahead = None if resident else _copy_stream(pool.labels.device)
    order, plan = plan.order, plan.to(pool.device)  # waits for the device, once an epoch

    def fetch(start: int) -> Tensor:
        if ahead is None:
            return pool.images[plan.order[start : start + size]]
        with torch.cuda.stream(ahead):
            return pool.images[order[start : start + size]].pin_memory().to(pool.device, non_blocking=True)

    following = fetch(0)
    for start in range(0, len(plan), size):
        images, part = following, plan[start : start + size]
        if ahead is not None:
            torch.cuda.current_stream().wait_stream(ahead)
            images.record_stream(torch.cuda.current_stream())
        if start + size < len(plan):
            following = fetch(start + size)
        yield augment.apply(images, part), pool.labels[part.order]
