"""``Source``, a data set before anything is drawn from it, and ``from_arrays``, which makes one from arrays."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from distill.config import CUSTOM_DATA
from distill.errors import DataError, one_line, suggestion
from distill.records import digest_of_arrays

MOST_UNNAMED = 10_000  # classes without names, if there are no more images than that


def is_mapped(array: object) -> bool:
    """Whether an array is a view of a memory-mapped file, as one that ``np.load(file, mmap_mode="r")`` returns."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


@dataclass(frozen=True, eq=False)
class MappedImages:
    """Some images of a memory-mapped array. Like an array (n, c, h, w), but reads images only as needed."""

    whole: np.ndarray  # (m, c, h, w) uint8, or float32 for vectors; memory-mapped
    rows: np.ndarray  # (n,) int64, positions in ``whole``

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c, h, w)."""
        return (len(self.rows), *self.whole.shape[1:])

    @property
    def nbytes(self) -> int:
        """The bytes of these images."""
        return len(self.rows) * self.whole[0].nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        return self.whole[self.rows[at]]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return self.whole[self.rows].astype(dtype, copy=False)


Images = np.ndarray | MappedImages


def take(images: Images, rows: np.ndarray) -> Images:
    """The images at positions ``rows``; of a memory-mapped array they stay in the file."""
    if isinstance(images, MappedImages):
        return MappedImages(images.whole, images.rows[rows])
    return MappedImages(images, rows) if is_mapped(images) else images[rows]


@dataclass(frozen=True, eq=False)
class Source:
    """A whole data set: n training and m test images of c channels, h rows and w columns, of C classes."""

    name: str
    train_images: np.ndarray  # (n, c, h, w) uint8, or float32 for vectors, which have one pixel
    train_labels: np.ndarray  # (n,) int64 in [0, C)
    test_images: np.ndarray | None  # (m, c, h, w) like train_images; None if the data have no test split
    test_labels: np.ndarray | None  # (m,) int64 in [0, C), or None
    classes: tuple[str, ...]  # C names
    flip: bool  # whether mirror images show the same class
    superclasses: tuple[int, ...] | None = None  # of each class; read only for --label-noise-kind superclass
    human: np.ndarray | None = None  # (n,) int64 in [0, C): labels that people gave; read only for the kind human
    val_images: np.ndarray | None = None  # (k, c, h, w); None if held-out images come out of the training images
    val_labels: np.ndarray | None = None  # (k,) int64 in [0, C), or None
    given: np.ndarray | None = None  # (n,) int64 in [0, C): the labels to train on, if not the true ones

    def only(self, names: tuple[str, ...]) -> Source:
        """The images of some classes, numbered in this order; all if none is named. Raises DataError."""
        if not names:
            return self
        for name in names:
            if name not in self.classes:
                known = ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else "")
                raise DataError(
                    f"--classes: {self.name} has no class {name!r}{suggestion(name, self.classes)}; it has {known}"
                )
        number = np.full(len(self.classes), -1)
        number[[self.classes.index(name) for name in names]] = np.arange(len(names))
        changed: dict[str, Any] = {"classes": names}
        for part in ("train", "test", "val"):
            labels = getattr(self, f"{part}_labels")
            if labels is not None:
                kept = number[labels] >= 0
                changed |= {
                    f"{part}_images": getattr(self, f"{part}_images")[kept],
                    f"{part}_labels": number[labels[kept]],
                }
        rows = number[self.train_labels] >= 0
        for name in ("given", "human"):
            labels = getattr(self, name)
            if labels is not None:
                changed[name] = number[labels[rows]]
                if changed[name].min(initial=0) < 0:
                    raise DataError(
                        f"--classes: some {name} labels of these images are of other classes; leave --classes out"
                    )
        if self.superclasses is not None:
            changed["superclasses"] = tuple(self.superclasses[self.classes.index(name)] for name in names)
        return replace(self, **changed)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays and class names, 64 hexadecimal digits; equal data have equal fingerprints."""
        named = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        arrays = (*named, self.val_images, self.val_labels, self.given)
        return digest_of_arrays((array for array in arrays if array is not None), repr(self.classes))

    def check_fingerprint(self, expected: str | None) -> None:
        """Raise DataError unless ``expected``, the value of --data-sha256, is the fingerprint or None."""
        if expected is not None and expected != self.fingerprint:
            raise DataError(
                f"the images or labels of {self.name} are not those of --data-sha256; theirs is {self.fingerprint}"
            )


def from_arrays(
    train_images: ArrayLike,
    train_labels: ArrayLike,
    test_images: ArrayLike,
    test_labels: ArrayLike,
    classes: Iterable[object] | None = None,
    flip: bool = True,
    called: tuple[str, str, str, str] = ("train_images", "train_labels", "test_images", "test_labels"),
) -> Source:
    """Make a Source from arrays; ``called`` are their names in messages.

    Images are uint8 in [0, 255], shaped (n, h, w), (n, h, w, c) or (n, c, h, w) with c 1 or 3; labels are (n,)
    integers in [0, C). ``classes`` are C names, by default the numbers; ``flip`` says whether augmentation may mirror.
    Images (n, h, w) or (n, c, h, w) of ``np.load(file, mmap_mode="r")`` stay in the file: they may exceed memory.
    Raises DataError for anything else, and for a shape that can be read in two ways.
    """
    x_train = _as_nchw(train_images, called[0])
    x_test = _as_nchw(test_images, called[2])
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{called[0]} and {called[2]} differ in (channels, height, width): "
            f"{x_train.shape[1:]} and {x_test.shape[1:]}"
        )
    y_train = _as_labels(train_labels, len(x_train), called[1])
    y_test = _as_labels(test_labels, len(x_test), called[3])
    highest = int(max(y_train.max(), y_test.max()))
    images = len(x_train) + len(x_test)
    if classes is None and highest >= max(images, MOST_UNNAMED):
        raise DataError(
            f"label {highest} would make {highest + 1:,} classes of {images:,} images; number the classes 0, 1, 2, ..."
        )
    names = tuple(str(c) for c in (range(highest + 1) if classes is None else classes))
    if highest >= len(names):
        raise DataError(f"label {highest} is out of range for {len(names)} classes, which are 0 to {len(names) - 1}")
    if len(set(names)) < len(names):
        raise DataError(f"two classes have one name: {', '.join(names[:20])}")
    if len(names) < 2:
        raise DataError("a classifier needs at least two classes")
    return Source(CUSTOM_DATA, x_train, y_train, x_test, y_test, names, bool(flip))


def _as_nchw(values: ArrayLike, what: str) -> np.ndarray:
    """Images in any accepted layout as (n, c, h, w) uint8, contiguous."""
    images = as_array(values, what)
    if images.dtype != np.uint8:
        raise DataError(f"{what} must be uint8 in [0, 255], not {images.dtype}; convert them first")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(f"{what} must be a non-empty (n, h, w), (n, h, w, c) or (n, c, h, w), not {images.shape}")
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    channels_first = images.shape[1] in (1, 3)
    channels_last = images.shape[3] in (1, 3)
    if channels_first == channels_last:
        why = "can be read as (n, h, w, c) and as (n, c, h, w)" if channels_first else "has no axis of 1 or 3 channels"
        raise DataError(f"{what} of shape {images.shape} {why}; give (n, h, w), or (n, c, h, w) with c 1 or 3")
    return np.ascontiguousarray(images if channels_first else images.transpose(0, 3, 1, 2))


def _as_labels(values: ArrayLike, n: int, what: str) -> np.ndarray:
    """``n`` labels >= 0 as (n,) int64."""
    labels = as_array(values, what)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{what} must be {n} integers, one per image, not {labels.dtype} of shape {labels.shape}")
    for label in (labels.min(), labels.max()):
        if not 0 <= label < 2**63:
            raise DataError(f"{what} contains {label}; labels are 0, 1, 2, ...")
    return labels.astype(np.int64)


def as_array(values: object, what: str) -> np.ndarray:
    """``values`` as a NumPy array. Raises DataError, naming ``what``, for ragged lists and tensors on a GPU."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be converted to an array ({one_line(error)})") from None
