"""Real data for the closed forms: images of a data set, columns of a CSV file, or arrays of an NPZ file.

Subsets, held-out points and label noise are drawn as in the network half (``distill.data.splits``): with the same
options and seed a kernel and a network learn the same labels of the same images.
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.arrays import array_file
from distill.data.load import load_source
from distill.data.source import Source
from distill.data.splits import Split, corrupted, make_dataset
from distill.errors import ConfigError, DataError
from distill.kernel.arrays import LARGEST_ENTRY, FloatArray
from distill.kernel.table import Table, is_number
from distill.kernel.toy.options import require_absent
from distill.randomness import generator
from distill.sections import CUSTOM_DATA, DataConfig

Rows = NDArray[np.floating]


@dataclass(frozen=True)
class Part:
    """Some points: inputs X (n, p) float32 or float64, and targets y (n,), or (n, classes) one-hot, float64."""

    X: Rows
    y: FloatArray


@dataclass(frozen=True)
class Problem:
    """The points to fit, to choose by and to test on."""

    name: str
    train: Part
    val: Part | None
    test: Part | None
    classes: tuple[str, ...]  # their names, () for regression
    note: str  # what was done to the data, for the reader

    @property
    def loss(self) -> str:
        """The name of the loss in tables."""
        return "squared error of one-hot labels" if self.classes else "squared error"


@dataclass(frozen=True)
class Arrays:
    """All points of a file: X (n, p); y (n,) float64, or int64 positions in ``classes``. Test and held-out or None."""

    name: str
    X: Rows
    y: NDArray
    X_test: Rows | None = None
    y_test: NDArray | None = None
    X_val: Rows | None = None
    y_val: NDArray | None = None
    classes: tuple[str, ...] = ()
    given: NDArray | None = None  # given labels (n,) of the training points, if they differ from y
    note: str = ""


def load_problem(args: argparse.Namespace, table: Table | None) -> Problem:
    """The problem that the options name; ``table`` is the CSV file's, if any. Raises DataError and ConfigError."""
    seed = args.seed or 0
    options = args.data_options
    if "dataset" in options:
        problem = _images(DataConfig(**options), seed)
    else:
        if table is None:
            require_absent(vars(args), ("target", "classification"), "is for a CSV file: leave it out with an NPZ file")
        arrays = read_npz(args.data) if table is None else from_table(table, args.target, args.classification)
        problem = _split(arrays, DataConfig(dataset=CUSTOM_DATA, **options), seed)
    parts = [part for part in (problem.train, problem.val, problem.test) if part is not None]
    name = problem.name if "dataset" in options else str(args.data)
    for part in parts:
        _check(name, part)
    if problem.classes and (problem.train.y.max(axis=0) > 0).sum() < 2:
        raise DataError(f"the training points of {name} are all of one class")
    return _standardised(problem) if args.standardise else problem


def _check(name: str, part: Part) -> None:
    for what, values in (("inputs", part.X), ("targets", part.y)):
        for start in range(0, len(values), 4096):
            if not float(np.abs(values[start : start + 4096]).max(initial=0)) <= LARGEST_ENTRY:  # true for NaN too
                raise DataError(f"{name} has {what} that are NaN, infinite or above {LARGEST_ENTRY:g}")


def _standardised(problem: Problem) -> Problem:
    """Inputs with mean 0 and variance 1 over the training points; a constant column becomes 0."""
    mean = problem.train.X.mean(axis=0, dtype=np.float64)
    deviation = problem.train.X.std(axis=0, dtype=np.float64)
    deviation[deviation == 0] = 1

    def scaled(part: Part) -> Part:
        return Part(((part.X - mean) / deviation).astype(part.X.dtype), part.y)

    val = problem.val and scaled(problem.val)
    return replace(problem, train=scaled(problem.train), val=val, test=problem.test and scaled(problem.test))


def _images(config: DataConfig, seed: int) -> Problem:
    """A data set of images, each a row of pixels in [0, 1]."""
    source = load_source(config, progress=True)
    source.check_fingerprint(config.data_sha256)
    dataset = make_dataset(source, config, seed)

    def part(split: Split) -> Part:
        pixels = np.asarray(split.images).reshape(len(split), -1)
        return Part(pixels.astype(np.float32) / 255, np.eye(classes)[split.labels])

    classes = len(dataset.classes)
    folder = Path(config.data_dir).resolve().name
    name = folder if config.dataset == "imagefolder" else config.dataset.rpartition(":")[2]
    val = part(dataset.val) if dataset.val else None
    note = _noise_note(dataset.train.labels, dataset.train.true_labels)
    return Problem(name, part(dataset.train), val, part(dataset.test), dataset.classes, note)


def _noise_note(given: NDArray, true: NDArray) -> str:
    wrong = float((given != true).mean())
    return f"{wrong:.1%} of the training labels are wrong" if wrong else ""


def from_table(table: Table, target: str | None, classification: bool) -> Arrays:
    """The points of a CSV file. A target column of text is one of classes. Raises DataError."""
    y_name = table.target(target)
    X = table.numbers(table.inputs(y_name))
    name = table.path.stem
    text = table.text(y_name)
    if not classification:
        try:
            return Arrays(name, X, table.numbers([y_name])[:, 0])
        except DataError:
            if any(is_number(cell) or not cell for cell in text):  # a wrong number rather than the name of a class
                raise
    # numbers by size, then words
    classes = tuple(sorted(set(text), key=lambda cell: (float(cell) if is_number(cell) else math.inf, cell)))
    labels = np.array([classes.index(cell) for cell in text])
    return Arrays(name, X, labels, classes=classes, note=_class_note(y_name, classes))


def _class_note(column: str, classes: tuple[str, ...]) -> str:
    """How labels became classes, for the reader."""
    return f"the classes of {column} are {', '.join(classes[:5])}" + (", ..." if len(classes) > 5 else "")


KINDS = {"f": "real numbers", "i": "whole numbers", "u": "whole numbers", "b": "true and false", "U": "text"}


def read_npz(path: Path) -> Arrays:
    """The arrays of a file: X, y, and optionally X_test and y_test, X_val and y_val, given. Raises DataError."""
    found: dict[str, Any] = array_file(path, vectors=True)
    found.pop("classes", None)
    labels = [name for name in ("y", "y_test", "y_val", "given") if name in found]
    for name in labels:
        _check_labels(path, found, name)
    for key, values in found.items():
        if key not in labels and values.dtype not in (np.float32, np.float64):
            found[key] = values.astype(np.float64)
    if found["y"].dtype.kind == "f":
        for name in labels:
            found[name] = found[name].astype(np.float64)
        return Arrays(path.stem, **found)
    numbers = np.unique(np.concatenate([found[name] for name in labels]))
    for name in labels:
        found[name] = np.searchsorted(numbers, found[name])
    classes = tuple(map(str, numbers))
    return Arrays(path.stem, classes=classes, note=_class_note("y", classes), **found)


def _check_labels(path: Path, found: dict[str, NDArray], name: str) -> None:
    n = len(found["X" if name == "given" else "X" + name[1:]])
    y = found[name]
    if y.shape != (n,) or y.dtype.kind not in KINDS:
        raise DataError(f"{path}: {name} must be {n} numbers or labels, not {y.dtype} {y.shape}")
    kinds = [KINDS[found[each].dtype.kind] for each in ("y", name)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{path}: y holds {kinds[0]}, but {name} holds {kinds[1]}")


def _split(arrays: Arrays, config: DataConfig, seed: int) -> Problem:
    """Draw test, held-out and training points from those of a file, and corrupt training labels."""
    if arrays.X_val is not None and config.val_size:
        raise ConfigError("--val-size draws held-out points, but the file has X_val: leave it out")
    if config.corrupts and not arrays.classes:
        raise ConfigError("--label-noise needs classes, and these targets are numbers")
    pool = generator(seed, "split").permutation(len(arrays.y))
    drawn = {"test": 0 if arrays.X_test is not None else config.test_size or 0, "val": config.val_size}
    if sum(drawn.values()) >= len(pool):
        raise DataError(f"{arrays.name} has {len(pool):,} points: too few to set {sum(drawn.values()):,} aside")
    test_rows, val_rows, train_rows = np.split(pool, np.cumsum(list(drawn.values())))
    for name, size, rows in (("train", config.train_size, train_rows), ("test", config.test_size, arrays.y_test)):
        if size is not None and rows is not None and size > len(rows):
            raise DataError(f"--{name}-size {size:,}: {arrays.name} has {len(rows):,} such points")

    def part(X: Rows | None, y: NDArray | None, rows: NDArray) -> Part | None:
        if X is None or y is None or not len(rows):
            return None
        if len(rows) < len(X):  # otherwise nothing is copied
            rows = np.sort(rows)
            X, y = X[rows], y[rows]
        return Part(X, np.eye(len(arrays.classes))[y] if arrays.classes else y)

    test = part(arrays.X, arrays.y, test_rows)
    if arrays.y_test is not None:
        rows = generator(seed, "subset", 1).permutation(len(arrays.y_test))[: config.test_size]
        test = part(arrays.X_test, arrays.y_test, rows)
    val = part(arrays.X, arrays.y, val_rows)
    if arrays.y_val is not None:
        val = part(arrays.X_val, arrays.y_val, np.arange(len(arrays.y_val)))
    train_rows = np.sort(train_rows[: config.train_size])
    given, note = _given_labels(arrays, train_rows, config, seed)
    train = part(arrays.X, given, train_rows)
    assert train is not None
    return Problem(arrays.name, train, val, test, arrays.classes, "; ".join(filter(None, [arrays.note, note])))


def _given_labels(arrays: Arrays, train: NDArray, config: DataConfig, seed: int) -> tuple[NDArray, str]:
    """The labels (n,) to train on, with those of ``train`` corrupted, and a note on how many are wrong."""
    given = arrays.y if arrays.given is None else arrays.given
    if config.corrupts:
        if arrays.given is not None:
            raise ConfigError("--label-noise corrupts the true labels, but the file has given labels: leave it out")
        source = Source(arrays.name, arrays.X, arrays.y, None, None, arrays.classes, flip=False)
        labels = arrays.y[train]
        given = arrays.y.copy()
        given[train] = corrupted(source, Split(arrays.X, labels, labels, train), config, seed).labels
    if not arrays.classes:
        return given, ""
    return given, _noise_note(given[train], arrays.y[train])
