"""Readers: a data set on disk, or arrays from Python, as a ``Source``. Nothing here depends on a seed."""

import hashlib
import http.client
import io
import os
import pickle
import socket
import sys
import tarfile
import tempfile
import urllib.error
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.config import CUSTOM_DATA, DataConfig
from distill.errors import DataError, one_line


@dataclass(frozen=True, eq=False)
class Source:
    """What was read, whole: n training and m test images of c channels, h rows and w columns, of C classes."""

    name: str
    train_images: np.ndarray  # (n, c, h, w) uint8
    train_labels: np.ndarray  # (n,) int64 in [0, C)
    test_images: np.ndarray | None  # (m, c, h, w) uint8; None where the data come without a test split
    test_labels: np.ndarray | None  # (m,) int64 in [0, C), or None
    classes: tuple[str, ...]  # C names
    flip: bool  # does the mirror image of one of these still show the same class?

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays and class names, 64 hexadecimal digits: the same data, wherever they were read."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            if array is not None:
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def load_source(config: DataConfig, progress: bool = False) -> Source:
    """Read the data set that ``config`` names; ``progress`` shows a bar on standard error where it takes long.

    Raises DataError for whatever is missing, corrupt or unreachable.
    """
    data_dir = Path(config.data_dir)
    try:
        if config.dataset == "digits":
            return _read_digits()
        if config.dataset in ("cifar10", "cifar100"):
            return _read_cifar(config.dataset, data_dir)
        if config.dataset == "imagefolder":
            return _read_imagefolder(data_dir, config.image_size, progress)
    except OSError as error:  # what no reader foresees: no permission, a failing disk
        raise DataError(f"{data_dir} cannot be read ({one_line(error)})") from None
    raise DataError(f"no data set on disk is called {config.dataset!r}; arrays from Python go through from_arrays")


def _note(text: str) -> None:
    """One line on standard error about something that does not stop the run."""
    print(f"note: {text}", file=sys.stderr)


def _as_array(values, what: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # ragged lists, tensors on a GPU
        raise DataError(f"{what} cannot be made an array ({one_line(error)})") from None


# ---------------------------------------------------------------------------------------------- arrays from Python


def from_arrays(train_images, train_labels, test_images, test_labels, classes=None, flip=True) -> Source:
    """A Source from arrays.

    Images are uint8 in [0, 255], shaped (n, h, w), (n, h, w, c) or (n, c, h, w) with c 1 or 3; labels are (n,)
    integers in [0, C). ``classes`` are C names, by default the numbers; ``flip`` says whether augmentation may mirror.
    Raises DataError where anything else comes in, or where a shape can be read in two ways.
    """
    train_images = _as_nchw(train_images, "train_images")
    test_images = _as_nchw(test_images, "test_images")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            "train_images and test_images differ in (channels, height, width): "
            f"{train_images.shape[1:]} and {test_images.shape[1:]}"
        )
    train_labels = _as_labels(train_labels, len(train_images), "train_labels")
    test_labels = _as_labels(test_labels, len(test_images), "test_labels")
    highest = int(max(train_labels.max(), test_labels.max()))
    classes = tuple(str(c) for c in (range(highest + 1) if classes is None else classes))
    if highest >= len(classes):
        raise DataError(
            f"label {highest} is out of range for {len(classes)} classes, which are 0 to {len(classes) - 1}"
        )
    if len(classes) < 2:
        raise DataError("a classifier needs at least two classes")
    return Source(CUSTOM_DATA, train_images, train_labels, test_images, test_labels, classes, bool(flip))


def _as_nchw(images, what: str) -> np.ndarray:
    images = _as_array(images, what)
    if not images.flags.writeable:
        images = images.copy()  # torch warns of memory that it must not write to
    if images.dtype != np.uint8:
        raise DataError(f"{what} must be uint8 in [0, 255], not {images.dtype}; convert them first")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(f"{what} must be a non-empty (n, h, w), (n, h, w, c) or (n, c, h, w), not {images.shape}")
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        why = "can be read as (n, h, w, c) and as (n, c, h, w)" if first else "has no axis of 1 or 3 channels"
        raise DataError(f"{what} of shape {images.shape} {why}; give (n, h, w), or (n, c, h, w) with c 1 or 3")
    return np.ascontiguousarray(images if first else images.transpose(0, 3, 1, 2))


def _as_labels(labels, n: int, what: str) -> np.ndarray:
    labels = _as_array(labels, what)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{what} must be {n} integers, one per image, not {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0:
        raise DataError(f"{what} holds {labels.min()}; labels count from 0")
    return labels.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- digits


def _read_digits() -> Source:
    """scikit-learn's embedded 1,797 handwritten digits, (1797, 1, 8, 8), without a test split of their own."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # ink of 0 to 16
    labels = digits.target.astype(np.int64)
    return Source("digits", images[:, None], labels, None, None, tuple(str(d) for d in range(10)), flip=False)


# ----------------------------------------------------------------------------------------------------------- CIFAR


def _read_cifar(name: str, data_dir: Path) -> Source:
    """CIFAR-10 or CIFAR-100, (n, 3, 32, 32), from its own on-disk format; downloaded where there is none.

    torchvision supplies the download, the names and the checksums. Its class reads the original files only, so the
    batches are read here: subsets in the same format are taken too, and an error names the file.
    """
    from torchvision import datasets

    original = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = data_dir / original.base_folder
    if not folder.is_dir():
        _fetch_cifar(original, data_dir)
    classes, as_published = _cifar_classes(folder, original.meta)
    label_key = "labels" if name == "cifar10" else "fine_labels"
    parts = {}
    for part, listed in (("train", original.train_list), ("test", original.test_list)):
        present = [entry for entry in listed if (folder / entry[0]).exists()]
        if not present:
            raise DataError(f"{folder} has no {listed[0][0]}; delete the folder, and it will be fetched again")
        batches = [_cifar_batch(folder / file, md5, label_key, len(classes)) for file, md5 in present]
        parts[part] = tuple(np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
        if any(batch[2] for batch in batches) and len(present) < len(listed):
            missing = next(entry[0] for entry in listed if entry not in present)
            raise DataError(f"{folder} has no {missing}; delete the folder, and it will be fetched again")
        as_published &= len(present) == len(listed) and all(batch[2] for batch in batches)
    if not as_published:
        n, m = len(parts["train"][1]), len(parts["test"][1])
        _note(f"{folder} does not hold the original files: {n:,} training and {m:,} test images")
    return Source(name, *parts["train"], *parts["test"], classes, flip=True)


def _cifar_classes(folder: Path, meta: dict) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether their file is the original."""
    path = folder / meta["filename"]
    content, as_published = _unpickle(path, meta["md5"])
    names = content.get(meta["key"])
    if not (isinstance(names, list) and len(names) >= 2 and all(isinstance(n, str) for n in names)):
        raise DataError(
            f"{path}: no list of class names under {meta['key']!r}; delete {folder} to have it fetched again"
        )
    return tuple(names), as_published


def _cifar_batch(path: Path, md5: str, label_key: str, classes: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of a batch file, and whether it is the original."""
    content, as_published = _unpickle(path, md5)
    images = content.get("data")
    labels = _as_array(content.get(label_key), f"{path}: {label_key!r}")
    if not (
        isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2 and images.shape[1] == 3072
    ):
        raise DataError(f"{path}: no uint8 array of n x 3072 pixels under 'data'; is this a batch of CIFAR?")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise DataError(f"{path}: 'data' has {len(images)} images, but {label_key!r} is no list of as many integers")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}, but there are {classes} classes")
    if not as_published and len(images) == (50_000 if path.name == "train" else 10_000):
        raise DataError(
            f"{path} is damaged (as many images as the original, another MD5); delete {path.parent} "
            "to have it fetched again"
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64), as_published


class _DataUnpickler(pickle.Unpickler):
    """Builds arrays, lists, strings and numbers, and nothing else: reading a data file must not run its code."""

    ALLOWED = frozenset({("numpy", name) for name in ("ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar")})
    ALLOWED |= {("_codecs", "encode")}  # how Python 3 writes bytes into the older protocols

    def find_class(self, module: str, name: str):
        if (module.partition(".")[0], name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path, md5: str) -> tuple[dict, bool]:
    """The dictionary in a pickle, and whether the file has this MD5."""
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of how Python 2 wrote dtypes, as the original files have it; later ones do not.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            content = _DataUnpickler(io.BytesIO(data), encoding="latin1").load()
    except FileNotFoundError:
        raise DataError(f"{path.parent} has no {path.name}; delete the folder, and it will be fetched again") from None
    except Exception as error:  # garbage makes a pickle raise nearly anything
        raise DataError(
            f"{path} cannot be read ({one_line(error)}); delete {path.parent} to have it fetched again"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a dictionary; is this a batch of CIFAR?")
    return content, hashlib.md5(data, usedforsecurity=False).hexdigest() == md5


def _fetch_cifar(original: type, data_dir: Path) -> None:
    """Download and unpack the archive. The folder appears under its name only when it is complete.

    SELF_DISTILLER_CIFAR_URL and SELF_DISTILLER_CIFAR_MD5 in the environment name a mirror of the archive.
    """
    from torchvision.datasets.utils import check_integrity

    md5 = os.environ.get("SELF_DISTILLER_CIFAR_MD5", original.tgz_md5)
    archive = data_dir / original.filename
    if archive.exists() and not check_integrity(archive, md5):
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
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")  # nothing outside the folder, whatever a mirror sends
            os.replace(Path(folder, original.base_folder), data_dir / original.base_folder)
        except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
            if not (data_dir / original.base_folder).is_dir():  # else another process was faster
                raise DataError(f"cannot unpack {archive} into {data_dir} ({one_line(error)})") from None


def _download(original: type, md5: str, unfinished: Path, archive: Path) -> None:
    from torchvision.datasets.utils import download_url

    url = os.environ.get("SELF_DISTILLER_CIFAR_URL", original.url)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte; torchvision sets none, and would wait for ever
    try:
        download_url(url, unfinished, original.filename, md5)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection open
        wrong = type(error) is RuntimeError  # what torchvision raises for the checksum, without saying so
        reason = f"what came has another MD5 than {md5}" if wrong else one_line(error)
        raise DataError(
            f"cannot download {url} ({reason}); put {archive.name} into {archive.parent} by hand, "
            "or take --dataset digits, which needs no download"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    os.replace(unfinished / archive.name, archive)


# --------------------------------------------------------------------------------------------------- image folders


def _read_imagefolder(data_dir: Path, image_size: int | None, progress: bool) -> Source:
    """A tree train/<class>/* and test/<class>/* of images, (n, 3, h, w); decoded once, then read from a cache."""
    for folder in (data_dir, data_dir / "train", data_dir / "test"):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}; imagefolder reads DIR/train/<class>/* and DIR/test/<class>/*")
    classes = tuple(entry.name for entry in _entries(data_dir / "train") if entry.is_dir())
    if len(classes) < 2:
        raise DataError(f"{data_dir / 'train'} has {len(classes)} class folders; it needs two or more")
    train = _list_images(data_dir, "train", classes)
    files = train + _list_images(data_dir, "test", classes)
    key = hashlib.sha256(repr([(f.name, f.size, f.mtime_ns) for f in files]).encode()).hexdigest()
    cache = data_dir / f".self-distiller-{image_size or 'native'}.npz"
    images = _read_cache(cache, key)
    if images is None:
        images = _decode_all(data_dir, files, image_size, progress)
        _write_cache(cache, key, images)
    labels, n = np.array([file.label for file in files], dtype=np.int64), len(train)
    return Source("imagefolder", images[:n], labels[:n], images[n:], labels[n:], classes, flip=True)


class _ImageFile(NamedTuple):
    name: str  # relative to the data folder
    label: int
    size: int  # bytes
    mtime_ns: int  # when it was last changed


def _entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, without hidden files, by name."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _list_images(data_dir: Path, part: str, classes: tuple[str, ...]) -> list[_ImageFile]:
    """The images of a part, by class and name. Hidden files and those of no image format are left out."""
    known = _image_extensions()
    found = []
    for folder in _entries(data_dir / part):
        if not folder.is_dir():
            continue
        if folder.name not in classes:
            raise DataError(f"{folder.path} is a class without a folder in {data_dir / 'train'}; remove or rename it")
        files = [e for e in _entries(Path(folder.path)) if os.path.splitext(e.name)[1].lower() in known]
        if not files:
            raise DataError(f"{folder.path} has no image in a format that Pillow reads; add some, or remove the folder")
        label = classes.index(folder.name)
        for file in files:
            stat, name = file.stat(), f"{part}/{folder.name}/{file.name}"
            found.append(_ImageFile(name, label, stat.st_size, stat.st_mtime_ns))
    if not found:
        raise DataError(f"{data_dir / part} has no class folders; it needs DIR/{part}/<class>/*")
    return found


def _image_extensions() -> set[str]:
    from PIL import Image

    Image.preinit()  # the common formats first: Pillow tries them on a file in the order of loading
    return {ext for ext, format in Image.registered_extensions().items() if format in Image.OPEN}


def _decode_all(data_dir: Path, files: list[_ImageFile], image_size: int | None, progress: bool) -> np.ndarray:
    """All files as one (n, 3, h, w) uint8."""
    from tqdm import tqdm

    paths = [data_dir / file.name for file in files]
    first = _decode(paths[0], image_size)
    images = np.empty((len(paths), *first.shape), np.uint8)

    def fill(i: int) -> None:
        image = _decode(paths[i], image_size)
        if image.shape != first.shape:
            sizes = " and ".join(f"{a.shape[2]}x{a.shape[1]}" for a in (first, image))
            raise DataError(f"{paths[0]} and {paths[i]} differ in size ({sizes}); give --image-size to resize them all")
        images[i] = image

    on_terminal = sys.stderr.isatty()
    if progress and not on_terminal:
        print(f"reading {len(paths):,} images from {data_dir}", flush=True)
    small = sum(file.size for file in files) < 16_384 * len(files)
    with ThreadPoolExecutor() as pool:
        # Threads decode photographs faster; over files of a few kilobytes they only fight for the interpreter
        # (measured on 2 cores with files of 1 kB: 139 us an image without them, 250 us with two).
        done = (map if small else pool.map)(fill, range(len(paths)))
        for _ in tqdm(done, "reading images", len(paths), disable=not (progress and on_terminal)):
            pass
    return images


def _decode(path: Path, image_size: int | None) -> np.ndarray:
    """One image as (3, h, w) uint8 RGB; of an animation, the first frame.

    Transparency is laid over white; 16-bit greyscale is scaled from [0, 65535]; other modes are converted by Pillow.
    Pixels are taken as stored: an orientation in the EXIF data is not applied.
    ``image_size`` resizes to a square (bilinear, antialiased; proportions are not kept).
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = _as_rgb(image)
            if image_size is not None:
                rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return np.asarray(rgb).transpose(2, 0, 1)
    except Exception as error:  # a damaged file makes a decoder raise nearly anything
        raise DataError(f"{path} cannot be read as an image ({one_line(error)}); repair or remove it") from None


def _as_rgb(image):
    from PIL import Image

    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("pixels beyond 16 bits")
        image = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _read_cache(cache: Path, key: str) -> np.ndarray | None:
    """The cached images, or None where there are none for this state of the tree."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["images"] if str(stored["key"]) == key else None
    except Exception:  # whatever is wrong with it, it is made again
        return None


def _write_cache(cache: Path, key: str, images: np.ndarray) -> None:
    unfinished = cache.with_name(f"{cache.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, images=images, key=np.array(key))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, cache)
    except OSError as error:
        _note(f"{cache} cannot be written ({error.strerror}): the next run will decode the images again")
    finally:
        with suppress(OSError):  # there is nothing to remove where it got its name, or was never made
            unfinished.unlink()
