"""A data set as uint8 splits in memory: what is held out, which subset is taken, which labels are corrupted.

Every draw is a function of (seed, purpose) over the whole source, so that one size never shifts another's draw:
a larger training subset contains the smaller one, and an image that two settings corrupt gets the same wrong label.
"""

from dataclasses import dataclass

import numpy as np

from distill.config import DataConfig
from distill.data.sources import Source
from distill.errors import DataError
from distill.randomness import generator

TEST_OF_UNSPLIT = 500  # test images drawn from a source without a test split: 50 of each digit


@dataclass(frozen=True, eq=False)
class Split:
    """n images of c channels, h rows and w columns, in ascending order of ``index``."""

    images: np.ndarray  # (n, c, h, w) uint8
    labels: np.ndarray  # (n,) int64, what the model is given
    true_labels: np.ndarray  # (n,) int64, before corruption; the same array where nothing is corrupted
    index: np.ndarray  # (n,) int64, positions in the source's training or test split

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """What one seed of a run trains, selects and tests on."""

    name: str
    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: np.ndarray  # (c,) float32, of train.images / 255
    std: np.ndarray  # (c,) float32, likewise, > 0
    flip: bool  # may augmentation mirror images?


def make_dataset(source: Source, config: DataConfig, seed: int) -> Dataset:
    """Split, subset and corrupt ``source`` as ``config`` says. The same arguments give the same arrays.

    Held-out images are taken first and keep their labels, training images from what is left, and labels are corrupted
    last, in the training images only. Without a size everything is taken. Raises DataError where a class has too few
    images for its share, naming it.
    """
    labels, classes = source.train_labels, source.classes
    pool, test = np.arange(len(labels)), _whole_test(source, seed)
    if source.test_labels is None:
        pool = np.setdiff1d(pool, test.index)
    val = None
    if config.val_size:
        rng = generator(seed, "val")
        val_index = _balanced(labels, pool, config.val_size, classes, rng, "--val-size")
        val, pool = _take(source.train_images, labels, val_index), np.setdiff1d(pool, val_index)
    if config.train_size is not None:
        pool = _balanced(labels, pool, config.train_size, classes, generator(seed, "subset"), "--train-size")
    if len(pool) == 0:
        raise DataError(f"--val-size {config.val_size:,} leaves no image to train on; use a smaller one")
    if config.test_size is not None:
        rng = generator(seed, "subset", 1)  # 1: a draw of its own, apart from the training subset's
        some = _balanced(test.labels, np.arange(len(test)), config.test_size, classes, rng, "--test-size")
        some_labels = test.labels[some]
        test = Split(test.images[some], some_labels, some_labels, test.index[some])
    train = _corrupted(_take(source.train_images, labels, pool), len(labels), classes, config, seed)
    mean, std = _channel_moments(train.images)
    return Dataset(source.name, train, val, test, classes, mean, std, source.flip)


def _whole_test(source: Source, seed: int) -> Split:
    """The source's test split or, where it has none, images drawn from the others, as many of each class."""
    if source.test_labels is not None:
        return _take(source.test_images, source.test_labels, np.arange(len(source.test_labels)))
    labels, rng = source.train_labels, generator(seed, "split")
    index = _balanced(labels, np.arange(len(labels)), TEST_OF_UNSPLIT, source.classes, rng, "the test split's")
    return _take(source.train_images, labels, index)


def _take(images: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Split:
    """The split at ascending positions ``index``; the arrays themselves, uncopied, where that is all of them."""
    if len(index) < len(labels):
        images, labels = images[index], labels[index]
    return Split(images, labels, labels, index)


def _balanced(
    labels: np.ndarray, pool: np.ndarray, size: int, classes: tuple[str, ...], rng: np.random.Generator, what: str
) -> np.ndarray:
    """``size`` of the positions in ``pool``, ascending, with class counts that differ by at most one.

    ``labels`` are those of the whole source, and all of them are put in a random order, from which each class takes
    the first that are in the pool: so the order does not depend on the pool or the size. Classes that get one image
    more are drawn among those that have it.
    """
    order, class_order = rng.permutation(len(labels)), rng.permutation(len(classes))
    available = np.bincount(labels[pool], minlength=len(classes))
    share, extra = divmod(size, len(classes))
    roomy = class_order[available[class_order] > share]
    scarce = int(available.argmin())
    if available[scarce] < share or len(roomy) < extra:
        needed = share if available[scarce] < share else share + 1
        raise DataError(
            f"{what} {size:,} needs {needed:,} images of class {classes[scarce]!r}, of which there are "
            f"{available[scarce]:,}; use a smaller size"
        )
    counts = np.full(len(classes), share)
    counts[roomy[:extra]] += 1
    order = order[np.isin(order, pool)]
    return np.sort(np.concatenate([order[labels[order] == c][:count] for c, count in enumerate(counts)]))


def _corrupted(split: Split, source_size: int, classes: tuple[str, ...], config: DataConfig, seed: int) -> Split:
    """``split`` with exactly round(label_noise * n) wrong labels.

    symmetric: one of the other C - 1 classes, all equally likely; pairflip: (class + 1) mod C. Drawn for the whole
    source and looked up at ``split.index``, so that an image's wrong label depends neither on the subset nor on P.
    """
    count = round(config.label_noise * len(split))
    if count == 0:
        return split
    rng = generator(seed, "noise")
    rank = rng.permutation(source_size)[split.index]
    shift = rng.integers(1, len(classes), source_size)[split.index] if config.label_noise_kind == "symmetric" else 1
    noisy = (split.true_labels + shift) % len(classes)
    chosen = rank.argsort().argsort() < count  # the `count` lowest ranks
    return Split(split.images, np.where(chosen, noisy, split.true_labels), split.true_labels, split.index)


def _channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (population) per channel of images / 255: two (c,) float32.

    Through counts of the 256 values, so no rounding adds up. A constant channel gets the deviation 1: dividing by it
    then leaves zeros.
    """
    levels, moments = np.arange(256.0), []
    for channel in range(images.shape[1]):
        # bincount widens what it counts to int64, hence a part at a time
        counts = sum(
            np.bincount(images[i : i + 4096, channel].ravel(), minlength=256) for i in range(0, len(images), 4096)
        )
        mean = counts @ levels / counts.sum()
        std = np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())
        moments.append((mean / 255, std / 255 or 1.0))
    mean, std = np.array(moments, dtype=np.float32).T.copy()
    return mean, std
