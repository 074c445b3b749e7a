"""A seed's splits of a data set: held-out images, subsets and label noise.

Every draw depends on (seed, purpose) and the whole source alone. Therefore a size does not change other draws, a larger
training subset contains the smaller one, and an image that two settings corrupt gets the same wrong label.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distill.config import DataConfig
from distill.data.source import Images, Source, take
from distill.errors import DataError
from distill.noise import NOISE_KINDS, TrueLabels
from distill.randomness import generator

ROWS = 4096  # vectors in memory at once
TEST_OF_DIGIT = 50  # test images of each class of the digits, which have no test split


@dataclass(frozen=True, eq=False)
class Split:
    """n images of c channels, h rows and w columns, in ascending order of ``index``."""

    images: Images  # (n, c, h, w) uint8, or float32 for vectors
    labels: np.ndarray  # (n,) int64, the given labels
    true_labels: np.ndarray  # (n,) int64, before corruption; the same array if nothing is corrupted
    index: np.ndarray  # (n,) int64, positions in the source's training or test split

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Split":
        """The images at positions ``rows``, (k,) ascending distinct integers. Copies nothing if all are taken."""
        if len(rows) == len(self):
            return self
        labels = self.labels[rows]
        clean = self.true_labels is self.labels
        return Split(take(self.images, rows), labels, labels if clean else self.true_labels[rows], self.index[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """The images that one seed of a run trains, selects and tests on."""

    name: str
    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: np.ndarray  # (c,) float32, of train.images / 255
    std: np.ndarray  # (c,) float32, likewise, > 0
    flip: bool  # whether augmentation may mirror images
    noise_kind: str | None = None  # of the corrupted training labels

    @property
    def label_noise(self) -> dict[str, Any] | None:
        """The kind of the label noise and its rate, the share of wrong labels that this training set has."""
        wrong = self.train.labels != self.train.true_labels
        return None if self.noise_kind is None else {"kind": self.noise_kind, "rate": float(wrong.mean())}


def make_dataset(source: Source, config: DataConfig, seed: int) -> Dataset:
    """Split, subset and corrupt ``source`` as ``config`` says. The same arguments give the same arrays.

    Held-out images are drawn first and keep their true labels, training images come from the rest, and only training
    labels are corrupted. Without a size all images are taken. Raises DataError, naming the class, if one has too few
    images for its share.
    """
    classes = source.classes
    side = min(source.train_images.shape[2:])
    if config.cutout > side:
        raise DataError(f"--cutout {config.cutout:,} is more than the {side:,} pixels of a side of the images")
    whole = _split(source.train_images, source.train_labels)
    pool = whole.index
    if source.test_images is None or source.test_labels is None:
        rng = generator(seed, "split")
        size = config.test_size
        if source.name == "digits" and (size is None or not config.classes):
            size = TEST_OF_DIGIT * len(classes)
        if size is None:
            raise DataError(f"{source.name} has no test images: give --test-size N, and the seed draws N of its images")
        test = whole.take(_balanced(whole.labels, pool, size, classes, rng, "the test split's"))
        pool = np.setdiff1d(pool, test.index)
    else:
        test = _split(source.test_images, source.test_labels)
    val = None
    if config.val_size and source.val_images is not None and source.val_labels is not None:
        val = _split(source.val_images, source.val_labels)
        everything = np.arange(len(val))
        val = val.take(
            _balanced(val.labels, everything, config.val_size, classes, generator(seed, "val"), "--val-size")
        )
    elif config.val_size:
        val = whole.take(_balanced(whole.labels, pool, config.val_size, classes, generator(seed, "val"), "--val-size"))
        pool = np.setdiff1d(pool, val.index)
    if config.train_size is not None:
        pool = _balanced(whole.labels, pool, config.train_size, classes, generator(seed, "subset"), "--train-size")
    if len(pool) == 0:
        given = f"--val-size {config.val_size:,}" if config.val_size else f"--test-size {config.test_size:,}"
        raise DataError(f"{given} leaves no image to train on; use a smaller one")
    if config.test_size is not None:
        rng = generator(seed, "subset", 1)  # 1: another draw than the training subset's
        test = test.take(_balanced(test.labels, np.arange(len(test)), config.test_size, classes, rng, "--test-size"))
    train = corrupted(source, whole.take(pool), config, seed)
    mean, std = _channel_moments(train.images)
    kind = config.label_noise_kind if config.corrupts else None if source.given is None else "given"
    return Dataset(source.name, train, val, test, classes, mean, std, source.flip, kind)


def _split(images: Images, labels: np.ndarray) -> Split:
    """All images of one part of a source."""
    return Split(images, labels, labels, np.arange(len(labels)))


def _balanced(
    labels: np.ndarray, pool: np.ndarray, size: int, classes: tuple[str, ...], rng: np.random.Generator, what: str
) -> np.ndarray:
    """``size`` of the positions in ``pool``, ascending, with class counts that differ by at most one.

    ``labels`` are those of the whole source. All positions are put in a random order, and each class takes its first in
    the pool, so the order depends neither on the pool nor on the size. The classes with one image more are drawn from
    those that have enough. ``what`` names the option in the DataError for a class with too few images.
    """
    order = rng.permutation(len(labels))
    class_order = rng.permutation(len(classes))
    available = np.bincount(labels[pool], minlength=len(classes))
    share, extra = divmod(size, len(classes))
    roomy = class_order[available[class_order] > share]
    scarce = int(available.argmin())
    if available[scarce] < share or len(roomy) < extra:
        needed = share if available[scarce] < share else share + 1
        raise DataError(
            f"{what} {size:,} needs {needed:,} images of class {classes[scarce]!r}, but there are "
            f"{available[scarce]:,}; use a smaller size"
        )
    counts = np.full(len(classes), share)
    counts[roomy[:extra]] += 1
    order = order[np.isin(order, pool)]
    return np.sort(np.concatenate([order[labels[order] == c][:count] for c, count in enumerate(counts)]))


def corrupted(source: Source, split: Split, config: DataConfig, seed: int) -> Split:
    """Some training images of the source, round(label_noise * n) of their n labels wrong.

    n counts only images that this kind of noise affects; a kind that sets its rate gives all wrong labels. An order of
    the whole source and a wrong label for each image are drawn; the first of the images in this order get their wrong
    labels. Therefore a wrong label depends neither on the subset nor on the number of corrupted images.
    """
    if source.given is not None:
        if config.corrupts:
            raise DataError(f"{source.name} has given labels already: leave --label-noise out")
        return replace(split, labels=source.given[split.index])
    if not config.corrupts:
        return split
    kind = NOISE_KINDS[config.label_noise_kind]
    true = TrueLabels(
        source.train_labels, source.classes, source.superclasses, source.human, config.epsilon, config.confusion
    )
    rng = generator(seed, "noise")
    rank = rng.permutation(len(true.labels))
    wrong = kind.wrong_labels(true, rng)[split.index]
    affected = np.flatnonzero(wrong != split.true_labels)
    count = len(affected) if kind.sets_rate else round(config.label_noise * len(affected))
    corrupted = affected[np.argsort(rank[split.index[affected]])[:count]]
    labels = split.true_labels.copy()
    labels[corrupted] = wrong[corrupted]
    return replace(split, labels=labels)


def _channel_moments(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (population) per channel of images / 255: two (c,) float32.

    Computed from the counts of the 256 values, so that no rounding errors add up. A constant channel gets the deviation
    1, so that it becomes 0. Of vectors, which are float32 and have one pixel, those of the values themselves.
    """
    if images[:1].dtype != np.uint8:
        centre = np.zeros(images.shape[1])
        square = np.zeros(images.shape[1])
        for i in range(0, len(images), ROWS):
            centre += images[i : i + ROWS].sum((0, 2, 3), dtype=np.float64) / len(images)
        for i in range(0, len(images), ROWS):
            square += ((images[i : i + ROWS].mean((2, 3), dtype=np.float64) - centre) ** 2).sum(0) / len(images)
        deviation = np.sqrt(square).astype(np.float32)
        return centre.astype(np.float32), np.where(deviation > 0, deviation, np.float32(1))
    levels = np.arange(256.0)
    means = []
    stds = []
    counts_of = np.zeros((images.shape[1], 256), dtype=np.int64)
    size = max(1, 2**22 // (images.shape[2] * images.shape[3]))  # in parts: bincount makes an int64 copy of its input
    for i in range(0, len(images), size):
        part = images[i : i + size]
        for channel, counts in enumerate(counts_of):
            counts += np.bincount(part[:, channel].ravel(), minlength=256)
    for counts in counts_of:
        mean = counts @ levels / counts.sum()
        std = np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())
        means.append(mean / 255)
        stds.append(std / 255 if std > 0 else 1.0)
    return np.array(means, dtype=np.float32), np.array(stds, dtype=np.float32)
