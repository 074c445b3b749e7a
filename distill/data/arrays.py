"""Files of arrays: X, y, X_test, y_test, X_val, y_val, given and classes, in an NPZ file or a folder of NPY files.

``--dataset arrays`` reads images, ``--dataset features`` vectors, and ``krr_toy.py --data`` vectors.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import DataConfig
from distill.data.source import Source, from_arrays
from distill.errors import DataError, one_line
from distill.records import map_array, read_arrays

PARTS = ("", "_test", "_val")
NAMES = (*(name + part for part in PARTS for name in ("X", "y")), "given", "classes")
ROWS = 4096  # that are checked at once, of vectors that may be on the disk


def array_file(path: Path, vectors: bool) -> dict[str, np.ndarray]:
    """The arrays of a file, of ``NAMES``; those of a folder are memory-mapped. Raises DataError.

    X and y are there, and each other X has its y. If ``vectors``, each X is numbers (n, p), for one p.
    """
    is_folder = path.is_dir()
    if path.suffix == ".npy" and not is_folder:
        raise DataError(f"{path} holds one array: name its folder, with X.npy and y.npy in it")
    try:
        if is_folder:
            found = {name: map_array(path / f"{name}.npy") for name in NAMES if (path / f"{name}.npy").exists()}
        else:
            found = read_arrays(path, NAMES)
    except ValueError as error:
        if is_folder:
            raise DataError(f"{path}: {error}; numpy.save writes such a file") from None
        raise DataError(f"{path} cannot be read as an NPZ file of arrays ({error}); numpy.savez writes one") from None
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror or one_line(error)})") from None
    for name in ("X", "y"):
        if name not in found:
            raise DataError(f"{path} has no array {name}; it needs X (n, p) and y (n,)")
    for part in PARTS:
        if ("X" + part in found) != ("y" + part in found):
            raise DataError(f"{path} must hold X{part} and y{part}, or neither")
        X = found.get("X" + part)
        if X is None or not vectors:
            continue
        if X.ndim != 2 or X.dtype.kind not in "fiu" or X.size == 0:
            raise DataError(f"{path}: X{part} must be numbers (n, p), not {X.dtype} {X.shape}")
        if X.shape[1] != found["X"].shape[1]:
            raise DataError(f"{path}: X has {found['X'].shape[1]} features, but X{part} has {X.shape[1]}")
    return found


def read_array_data(config: DataConfig, progress: bool = False) -> Source:
    """The images or vectors and labels in the file ``config.data``.

    Images are those of ``from_arrays``. Vectors (n, p) become images of p channels and one pixel; all are finite and no
    column is constant. The labels ``y`` are 0, 1, 2, ..., each at least once. Raises DataError.
    """
    path = Path(str(config.data))
    vectors = config.dataset == "features"
    found = array_file(path, vectors)
    blanks = {part: found["X" + part] for part in PARTS if "X" + part in found}
    X = {part: _vectors(values, f"{path}: X{part}") for part, values in blanks.items()} if vectors else {}
    if vectors:
        _refuse_constant(path, X[""])
        blanks = {part: np.zeros((len(values), 1, 1), np.uint8) for part, values in X.items()}
    count = _count_classes(path, found["y"])
    names = found.get("classes", range(count) if count else None)

    def with_labels(labels: str, part: str) -> Source:
        arrays = (blanks[""], found[labels], blanks[part], found["y" + part])
        try:
            return from_arrays(*arrays, names, flip=False, called=("X", labels, "X" + part, "y" + part))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    source = with_labels("y", "_test" if "_test" in blanks else "")
    fields: dict[str, Any] = {"name": config.dataset}
    if "_test" not in blanks:
        fields |= {"test_images": None, "test_labels": None}
    if "_val" in blanks:
        held_out = with_labels("y", "_val")
        fields |= {"val_images": held_out.test_images, "val_labels": held_out.test_labels}
    if "given" in found:
        fields["given"] = with_labels("given", "").train_labels
    keys = {"": "train_images", "_test": "test_images", "_val": "val_images"}
    fields |= {keys[part]: values[:, :, None, None] for part, values in X.items()}
    return replace(source, **fields)


def _vectors(values: np.ndarray, what: str) -> np.ndarray:
    """Vectors (n, p) as float32; a memory-mapped float32 array stays so. Raises DataError unless all are finite."""
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(values, np.float32)
    for start in range(0, len(vectors), ROWS):
        bad = np.argwhere(~np.isfinite(vectors[start : start + ROWS]))
        if len(bad):
            raise DataError(f"{what} is not finite as float32 in row {start + bad[0, 0]}, column {bad[0, 1]}")
    return vectors


def _refuse_constant(path: Path, X: np.ndarray) -> None:
    constant = np.flatnonzero(X.max(0) == X.min(0))
    if len(constant):
        more = f" and {len(constant) - 1:,} others are" if len(constant) > 1 else " is"
        raise DataError(f"{path}: column {constant[0]} of X{more} constant; leave constant columns out")


def _count_classes(path: Path, labels: np.ndarray) -> int | None:
    """The number of classes of the labels, None if they are no labels at all. Raises DataError if one is missing."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        return None
    found = np.unique(labels)
    if found[0] != 0 or found[-1] != len(found) - 1:
        raise DataError(
            f"{path}: y must hold the labels 0, 1, 2, ..., each at least once, but goes from {found[0]} to "
            f"{found[-1]} with {len(found):,} different ones"
        )
    return len(found)
