"""The labels that people gave to the images of CIFAR: CIFAR-10N and CIFAR-100N (Wei et al. 2022, arXiv 2110.12088).

Their licence forbids to ship them: the user puts the authors' file into the data folder.
"""

from pathlib import Path

import numpy as np

from distill.config import DataConfig
from distill.data.pickles import load_pickle
from distill.errors import DataError, one_line
from distill.noise import HUMAN_LABELS
from distill.records import opened_zip

FILES = {"cifar10": "CIFAR-10_human.pt", "cifar100": "CIFAR-100_human.pt"}
MOST_BYTES = 2**26  # of the arrays in a file; the original has 2.4 MB


def read_human_labels(config: DataConfig, true: np.ndarray, classes: int) -> np.ndarray:
    """The labels (n,) int64 that ``config.human_labels`` names, for training images with the labels ``true`` (n,).

    The file is a zip of a pickled dictionary of arrays, as torch writes it; no code in it is run. Raises DataError if
    it is missing or damaged, or of other images: its ``clean_label`` must equal ``true``.
    """
    if config.labels == "coarse":
        raise DataError("the labels of CIFAR-100N are fine ones: leave --labels coarse out")
    path = Path(config.data_dir) / FILES[config.dataset]
    try:
        with opened_zip(path) as parts:
            [entry] = [part for part in parts.infolist() if part.filename.rpartition("/")[2] == "data.pkl"]
            if entry.file_size > MOST_BYTES:
                raise ValueError("it is too large for a file of labels")
            content = load_pickle(parts.read(entry))
        arrays = {str(key): value for key, value in content.items() if isinstance(value, np.ndarray)}
    except FileNotFoundError:
        raise DataError(f"no file {path}: put the file of CIFAR-10N or CIFAR-100N there (Wei et al. 2022)") from None
    except Exception as error:  # garbage makes a pickle raise nearly anything
        raise DataError(f"{path} cannot be read ({one_line(error)}): it is no file of CIFAR-10N or 100N") from None
    key = HUMAN_LABELS[str(config.human_labels)]
    for name in ("clean_label", key):
        if name not in arrays:
            raise DataError(f"{path} has no {name}; choose another --human-labels (it has {', '.join(arrays)})")
        labels = arrays[name]
        if labels.shape != true.shape or labels.dtype.kind not in "iu":
            raise DataError(
                f"{path}: {name} is {labels.dtype} of shape {labels.shape}, but there are {len(true):,} training images"
            )
    if others := int((arrays["clean_label"] != true).sum()):
        raise DataError(
            f"{path} is of other images, or of another order: its clean labels differ from the data's for {others:,} "
            f"of {len(true):,} images"
        )
    given = arrays[key]
    if given.min() < 0 or given.max() >= classes:
        raise DataError(f"{path}: {key} goes from {given.min()} to {given.max()}, but there are {classes} classes")
    return given.astype(np.int64)
