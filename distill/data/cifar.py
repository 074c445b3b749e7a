"""CIFAR-10 and CIFAR-100, read from their own files and downloaded if there are none.

torchvision supplies the download, the file names and the checksums. Its class reads the original files only, so the
batches are read here: subsets in the same format also work, and an error names the file.
"""

import hashlib
import http.client
import os
import socket
import sys
import tarfile
import tempfile
import urllib.error
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.config import DataConfig
from distill.data.human import read_human_labels
from distill.data.pickles import load_pickle
from distill.data.source import Source, as_array
from distill.errors import DataError, one_line
from distill.files import open_file

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


MOST_BYTES = 2**30  # of a file; the largest original has 155 MB


def read_cifar(config: DataConfig, progress: bool = False) -> Source:
    """The images, (n, 3, 32, 32), and labels of ``config.dataset``, ``cifar10`` or ``cifar100``.

    A note on standard error says if they are not the original files. Raises DataError.
    """
    from torchvision import datasets

    original = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.dataset]
    data_dir = Path(config.data_dir)
    folder = data_dir / original.base_folder
    if not folder.is_dir():
        _fetch(original, data_dir)
    label_key = f"{config.labels}_labels" if config.dataset == "cifar100" else "labels"
    classes, original_names = _read_classes(folder, original.meta, label_key.removesuffix("s") + "_names")
    train_images, train_labels, original_train = _read_part(folder, original.train_list, label_key, len(classes))
    test_images, test_labels, original_test = _read_part(folder, original.test_list, label_key, len(classes))
    if not (original_names and original_train and original_test):
        print(
            f"note: {folder} does not hold the original files: {len(train_labels):,} training and "
            f"{len(test_labels):,} test images",
            file=sys.stderr,
        )
    superclasses = None
    if config.label_noise_kind == "superclass" and label_key == "fine_labels":
        coarse, _ = _read_classes(folder, original.meta, "coarse_label_names")
        _, groups, _ = _read_part(folder, original.train_list, "coarse_labels", len(coarse))
        superclasses = _superclasses(folder, train_labels, groups, len(classes))
    human = None
    if config.label_noise_kind == "human":
        human = read_human_labels(config, train_labels, len(classes))
    train = train_images, train_labels
    test = test_images, test_labels
    return Source(config.dataset, *train, *test, classes, flip=True, superclasses=superclasses, human=human)


def _superclasses(folder: Path, labels: np.ndarray, groups: np.ndarray, classes: int) -> tuple[int, ...]:
    """The superclass of every class, from the labels (n,) and superclasses (n,) of images."""
    found = [set(groups[labels == c].tolist()) for c in range(classes)]
    for c, group in enumerate(found):
        if len(group) != 1:
            raise DataError(f"{folder}: class {c} has images of {len(group)} superclasses; it needs exactly one")
    return tuple(min(group) for group in found)


def _read_classes(folder: Path, meta: dict[str, str], key: str) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether their file is the original."""
    path = folder / meta["filename"]
    content, is_original = _unpickle(path, meta["md5"])
    names = content.get(key)
    if not (isinstance(names, list) and len(names) >= 2 and all(isinstance(n, str) and n.isprintable() for n in names)):
        raise DataError(f"{path}: no list of class names under {key!r}; delete {folder} to have it downloaded again")
    return tuple(names), is_original


def _read_part(
    folder: Path, listed: list[tuple[str, str]], label_key: str, classes: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images (n, 3, 32, 32) and labels (n,) of the listed (file, MD5) that exist, and whether they are the original.

    One file is enough for a subset, but of the original files none may be missing.
    """
    present = [(file, md5) for file, md5 in listed if (folder / file).exists()]
    missing = [file for file, _ in listed if not (folder / file).exists()]
    batches = [_read_batch(folder / file, md5, label_key, classes) for file, md5 in present]
    originals = [is_original for _, _, is_original in batches]
    if not present or (missing and any(originals)):
        raise DataError(f"{folder} has no {missing[0]}; delete the folder to have it downloaded again")
    images = np.concatenate([images for images, _, _ in batches])
    labels = np.concatenate([labels for _, labels, _ in batches])
    return images, labels, all(originals) and not missing


def _read_batch(path: Path, md5: str, label_key: str, classes: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of a batch file, and whether it is the original."""
    content, is_original = _unpickle(path, md5)
    images = content.get("data")
    listed = content.get(label_key)
    if isinstance(listed, tuple) or (
        isinstance(listed, list) and any(isinstance(each, list | tuple) for each in listed)
    ):
        listed = None  # lists that hold one another would expand without end
    labels = as_array(listed, f"{path}: {label_key!r}")
    if not (
        isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2 and images.shape[1] == 3072
    ):
        raise DataError(f"{path}: no uint8 array of n x 3072 pixels under 'data'; is this a batch of CIFAR?")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise DataError(f"{path}: 'data' has {len(images)} images, but {label_key!r} is no list of as many integers")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}, but there are {classes} classes")
    original_size = 50_000 if path.name == "train" else 10_000  # of CIFAR-100's training set; of every other file
    if not is_original and len(images) == original_size:
        raise DataError(
            f"{path} is damaged (as many images as the original, another MD5); delete {path.parent} "
            "to have it downloaded again"
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64), is_original


def _unpickle(path: Path, md5: str) -> tuple[dict[str, Any], bool]:
    """The dictionary in a pickle, and whether the file has this MD5."""
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise ValueError("it is too large for a file of CIFAR")
            data = file.read()
        content = load_pickle(data)
    except FileNotFoundError:
        raise DataError(f"{path.parent} has no {path.name}; delete the folder to have it downloaded again") from None
    except Exception as error:  # garbage makes a pickle raise nearly anything
        raise DataError(
            f"{path} cannot be read ({one_line(error)}); delete {path.parent} to have it downloaded again"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a dictionary; is this a batch of CIFAR?")
    return content, hashlib.md5(data, usedforsecurity=False).hexdigest() == md5


def _fetch(original: "type[CIFAR10]", data_dir: Path) -> None:
    """Download and unpack the archive. The folder appears under its name only when it is complete.

    Set SELF_DISTILLER_CIFAR_URL (and SELF_DISTILLER_CIFAR_MD5 if the content differs) to use a mirror.
    """
    md5 = os.environ.get("SELF_DISTILLER_CIFAR_MD5", original.tgz_md5)
    archive = data_dir / original.filename
    folder = data_dir / original.base_folder
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is no folder; remove it to have the data downloaded")
    if archive.exists() and _md5(archive) != md5:
        raise DataError(f"{archive} is damaged: its MD5 is not {md5}; delete it to have it downloaded again")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.TemporaryDirectory(dir=data_dir, prefix=".unfinished-")
    except OSError as error:
        raise DataError(f"cannot write into {data_dir} ({one_line(error)}); choose another --data-dir") from None
    with unfinished as folder:
        if not archive.exists():
            _download(original, md5, Path(folder), archive)
        try:
            with open_file(archive) as file, tarfile.open(fileobj=file) as packed:
                packed.extractall(folder, filter="data")  # writes nothing outside the folder
            os.replace(Path(folder, original.base_folder), data_dir / original.base_folder)
        except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
            if not (data_dir / original.base_folder).is_dir():  # else another process was faster
                raise DataError(f"cannot unpack {archive} into {data_dir} ({one_line(error)})") from None


def _md5(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(original: "type[CIFAR10]", md5: str, unfinished: Path, archive: Path) -> None:
    """Download the archive into the folder ``unfinished``, then move it to ``archive``."""
    from torchvision.datasets.utils import download_url

    url = os.environ.get("SELF_DISTILLER_CIFAR_URL", original.url)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte; torchvision would wait for ever
    try:
        download_url(url, unfinished, original.filename, md5)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # else the connection stays open
        # torchvision raises a plain RuntimeError for a wrong checksum, and does not say so.
        wrong_checksum = type(error) is RuntimeError
        reason = f"the downloaded file has another MD5 than {md5}" if wrong_checksum else one_line(error)
        raise DataError(
            f"cannot download {url} ({reason}); put {archive.name} into {archive.parent} by hand, "
            "or use --dataset digits, which needs no download"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    os.replace(unfinished / archive.name, archive)
