"""Files of arrays: X, y, X_test and y_test, and perhaps X_val, y_val and given, in an .npz file or in a folder of .npy.

``--dataset arrays`` reads images, ``--dataset features`` vectors.
"""

from pathlib import Path
from typing import Any

import numpy as np

from distill.config import DataConfig
from distill.data.source import Source, from_arrays
from distill.errors import DataError, one_line
from distill.files import open_file

NEEDED = ("X", "y", "X_test", "y_test")


def read_arrays(config: DataConfig, progress: bool = False) -> Source:
    """The images or vectors and labels in the file ``config.data``.

    Images are those of ``from_arrays``; of vectors (n, p), which become images of p channels and one pixel, every
    number is finite and no column is constant. The labels ``y`` are 0, 1, 2, ..., each at least once; ``given`` are the
    labels to train on, ``y`` the true ones. Raises DataError.
    """
    path = Path(str(config.data))
    arrays = _read(path)
    if missing := [name for name in NEEDED if name not in arrays]:
        raise DataError(f"{path} has no {' and no '.join(missing)}; it needs {', '.join(NEEDED)}")
    parts = {part: arrays[f"X{part}"] for part in ("", "_test", "_val") if f"X{part}" in arrays}
    if config.dataset == "features":
        parts = {part: _vectors(values, f"{path}: X{part}") for part, values in parts.items()}
        shapes = {values.shape[1:] for values in parts.values()}
        if len(shapes) > 1:
            raise DataError(f"{path}: X, X_test and X_val have different numbers of columns")
        constant = np.flatnonzero(parts[""].max(0) == parts[""].min(0))
        if len(constant):
            more = f" and {len(constant) - 1:,} others are" if len(constant) > 1 else " is"
            raise DataError(f"{path}: column {constant[0]} of X{more} constant; leave constant columns out")
        blank = {part: np.zeros((len(values), 1, 1), np.uint8) for part, values in parts.items()}
    else:
        blank = parts
    labels = {part: arrays.get(f"y{part}", np.empty(0)) for part in parts}
    classes = _count_classes(path, labels[""])
    try:
        names = arrays.get("classes", range(classes) if classes else None)
        source = from_arrays(blank[""], labels[""], blank["_test"], labels["_test"], names, flip=False)
        fields: dict[str, Any] = {"name": config.dataset}
        if "_val" in parts:
            held_out = from_arrays(blank[""], labels[""], blank["_val"], labels["_val"], source.classes)
            fields |= {"val_images": held_out.test_images, "val_labels": held_out.test_labels}
        if "given" in arrays:
            given = from_arrays(blank[""], arrays["given"], blank["_test"], labels["_test"], source.classes)
            fields |= {"given": given.train_labels}
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if config.dataset == "features":
        keys = {"": "train_images", "_test": "test_images", "_val": "val_images"}
        fields |= {keys[part]: values[:, :, None, None] for part, values in parts.items()}
    return Source(**{**source.__dict__, **fields})


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file or folder, by name."""
    try:
        if path.is_dir():
            arrays = {}
            for file in sorted(path.glob("*.npy")):
                with open_file(file) as content:
                    arrays[file.stem] = np.load(content, allow_pickle=False)
            return arrays
        with open_file(path) as content, np.load(content, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise DataError(f"no file or folder {path}") from None
    except MemoryError:
        raise
    except Exception as error:  # garbage makes NumPy raise nearly anything
        raise DataError(f"{path} cannot be read as arrays ({one_line(error)}); write it with numpy.savez") from None


def _vectors(values: np.ndarray, what: str) -> np.ndarray:
    """Vectors (n, p) as float32. Raises DataError unless they are finite numbers."""
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiu":
        raise DataError(f"{what} must be numbers (n, p), not {values.dtype} of shape {values.shape}")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(vectors).all():
        row, column = np.argwhere(~np.isfinite(vectors))[0]
        raise DataError(f"{what} is not finite in row {row}, column {column}")
    return vectors


def _count_classes(path: Path, labels: np.ndarray) -> int | None:
    """The number of classes of the labels, None if they are no labels at all. Raises DataError if one is missing."""
    if labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels):
        found = np.unique(labels)
        if found[0] != 0 or found[-1] != len(found) - 1:
            raise DataError(
                f"{path}: y must hold the labels 0, 1, 2, ..., each at least once, but goes from {found[0]} to "
                f"{found[-1]} with {len(found):,} different ones"
            )
        return len(found)
    return None
