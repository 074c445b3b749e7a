"""Folders of images, one for each class: decoded once, into a memory-mapped file in a cache folder."""

import errno
import hashlib
import logging
import math
import os
import shutil
import sys
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from distill.config import DataConfig
from distill.data.source import Source
from distill.environment import available_memory
from distill.errors import DataError, one_line
from distill.files import open_file, read_text, write_atomically
from distill.program import complain
from distill.records import map_array, read_json, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 178_956_970  # of an image that is not resized; Pillow by itself refuses more than that
AT_ONCE = 256  # images that are decoded before the first of them is written
SMALL_FILES = 16_384  # bytes per file, on average, below which one thread decodes faster than several

_reading = threading.local()  # ``path``: the image that a thread reads


def read_folders(config: DataConfig, progress: bool = False) -> Source:
    """The images below ``config.data_dir``, (n, 3, h, w), resized if ``config.image_size`` is given.

    ``progress`` shows a bar on standard error while they are decoded. Raises DataError.
    """
    data_dir = Path(config.data_dir)
    train, test, classes = _list_parts(data_dir)
    files = train + test
    key = hashlib.sha256(repr([(f.name, *f.state) for f in files]).encode()).hexdigest()
    with pillow_warnings():
        with _opened(data_dir / files[0].name) as image:
            height, width = (image.height, image.width) if config.image_size is None else (config.image_size,) * 2
        shape = (len(files), 3, height, width)
        cache = cache_file(config)
        images = _read_cache(cache, key, shape)
        if images is None:
            images = _decode_all(data_dir, files, shape, config.image_size, cache, key, progress)
    labels = np.array([file.label for file in files], dtype=np.int64)
    n = len(train)
    source = Source("imagefolder", images[:n], labels[:n], images[n:], labels[n:], classes, flip=True)
    return source if test else replace(source, test_images=None, test_labels=None)


def cache_file(config: DataConfig) -> Path:
    """The NPY file of the decoded images of ``config.data_dir`` at this size."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    of = f"{os.path.realpath(config.data_dir)} at {config.image_size or 'native'}"
    name = f"images-{hashlib.sha256(os.fsencode(of)).hexdigest()[:16]}.npy"
    return Path(config.cache_dir or os.path.join(base, "self-distiller"), name)


class _ImageFile(NamedTuple):
    """An image file, with the size and times that show whether it has changed."""

    name: str  # relative to the data folder
    label: int
    state: tuple[int, int, int]  # bytes, and when its content and its entry were last changed

    @classmethod
    def of(cls, name: str, label: int, found: os.stat_result) -> "_ImageFile":
        """An image file from what the system says of it."""
        return cls(name, label, (found.st_size, found.st_mtime_ns, found.st_ctime_ns))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _files_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files in a folder and its subfolders, sorted by name, without hidden ones. Raises DataError for a circle."""
    for entry in _entries(folder):
        if not entry.is_dir():
            yield entry
        elif entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
            raise DataError(f"{entry.path} is a link that leads back to a folder above it; remove it")
        else:
            yield from _files_below(Path(entry.path))


def _is_unsplit(data_dir: Path) -> bool:
    """Whether a data folder has class folders only, rather than a training and a test part."""
    return not any((data_dir / part).is_dir() for part in ("train", "test"))


def require_outside(config: DataConfig, output: Path) -> None:
    """Raise DataError if a run directory is among the class folders: its figures would become images."""
    data_dir = Path(config.data_dir).resolve()
    parts = [data_dir] if _is_unsplit(data_dir) else [data_dir / part for part in ("train", "test", "val")]
    if any(output.resolve().is_relative_to(part) for part in parts):
        raise DataError(
            f"{output} is inside the image folder {config.data_dir}, where its figures would be taken for images: "
            "choose another --output"
        )


def _list_parts(data_dir: Path) -> tuple[list[_ImageFile], list[_ImageFile], tuple[str, ...]]:
    """The training images, the test images (none if there are only class folders) and the classes. Raises DataError."""
    unsplit = _is_unsplit(data_dir)
    tiny = data_dir / "val" / "val_annotations.txt"  # of Tiny ImageNet, whose test images have no labels
    for folder in (data_dir, *(data_dir / part for part in ("train", "test") if not (unsplit or tiny.exists()))):
        if not folder.is_dir():
            raise DataError(
                f"no folder {folder}; imagefolder reads DIR/train/<class>/* and DIR/test/<class>/*, or DIR/<class>/*"
            )
    top = data_dir if unsplit else data_dir / "train"
    classes = tuple(entry.name for entry in _entries(top) if entry.is_dir())
    if len(classes) < 2:
        raise DataError(f"{top} has {len(classes)} class folders; it needs two or more")
    train = _list_images(data_dir, "" if unsplit else "train", classes)
    if unsplit:
        return train, [], classes
    if tiny.exists():
        return train, _list_annotated(data_dir, tiny, classes), classes
    return train, _list_images(data_dir, "test", classes), classes


def _list_annotated(data_dir: Path, table: Path, classes: tuple[str, ...]) -> list[_ImageFile]:
    """The images of Tiny ImageNet's val/images/, whose classes a table tells, sorted by class and name."""
    found = []
    try:
        for number, line in enumerate(read_text(table).splitlines(), 1):
            name, _, rest = line.partition("\t")
            label = rest.partition("\t")[0]
            if label not in classes or os.path.basename(name) != name:
                raise DataError(
                    f"{table}, line {number}, is no image of a class in {data_dir / 'train'}: {line[:60]!a}"
                )
            stat = os.stat(table.parent / "images" / name)
            found.append(_ImageFile.of(f"val/images/{name}", classes.index(label), stat))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read ({one_line(error)})") from None
    if not found:
        raise DataError(f"{table} names no image")
    return sorted(found, key=lambda file: (file.label, file.name))


def _list_images(data_dir: Path, part: str, classes: tuple[str, ...]) -> list[_ImageFile]:
    """The images of a part, sorted by class and name, without hidden files and other formats."""
    from PIL import Image

    formats = _formats()
    known = {extension for extension, format in Image.registered_extensions().items() if format in formats}
    found = []
    for folder in _entries(data_dir / part):
        if not folder.is_dir():
            continue
        train = data_dir / "train"
        if folder.name not in classes:
            alike = [c for c in classes if unicodedata.normalize("NFC", c) == unicodedata.normalize("NFC", folder.name)]
            spelling = f" (its name is {folder.name!a}, that one's {alike[0]!a})" if alike else ""
            raise DataError(f"{folder.path} is a class without a folder in {train}{spelling}; remove or rename it")
        files = [e for e in _files_below(Path(folder.path)) if os.path.splitext(e.name)[1].lower() in known]
        if not files:
            raise DataError(f"{folder.path} has no image in a format that can be read; add some, or remove the folder")
        label = classes.index(folder.name)
        for file in files:
            found.append(_ImageFile.of(os.path.relpath(file.path, data_dir), label, file.stat()))
    if not found:
        raise DataError(f"{data_dir / part} has no class folders; it needs DIR/{part}/<class>/*")
    return found


def _formats() -> list[str]:
    """The formats that Pillow decodes by itself: some need another program or library, and one would run a script."""
    from PIL import Image

    Image.preinit()  # the common formats first: Pillow tries formats in the order in which they were loaded
    Image.init()
    return [format for format in Image.ID if format not in {"EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF"}]


def _require_memory(data_dir: Path, first: str, shape: tuple[int, ...]) -> None:
    """Raise DataError if n images (n, 3, h, w), of the size of the first, do not fit in memory."""
    n, _, height, width = shape
    free = available_memory()
    if free is not None and math.prod(shape) > free:
        raise DataError(
            f"the {n:,} images in {data_dir} need {math.prod(shape) / 1e9:,.1f} GB as {width:,}x{height:,} pixels, the "
            f"size of {first}, but {free / 1e9:,.1f} GB are free; give a smaller --image-size, or remove images"
        )


def _decode_all(
    data_dir: Path,
    files: list[_ImageFile],
    shape: tuple[int, ...],
    image_size: int | None,
    cache: Path,
    key: str,
    progress: bool,
) -> np.ndarray:
    """All files as one uint8 array of this shape, (n, 3, h, w), in the cache; in memory if that cannot be written.

    A note on standard error says so then.
    """
    digest = hashlib.sha256()

    def save(file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for image in _decoded(data_dir, files, shape, image_size, progress):
            file.write(image.data)
            digest.update(image.data)

    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        if math.prod(shape) > shutil.disk_usage(cache.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomically(cache, save)
        write_json(cache.with_suffix(".json"), {"key": key, "images": digest.hexdigest()})
        return map_array(cache)
    except OSError as error:
        _require_memory(data_dir, files[0].name, shape)
        complain(f"note: {cache} cannot be written ({error.strerror}): the next run will decode the images again")
    images = np.empty(shape, np.uint8)
    for i, image in enumerate(_decoded(data_dir, files, shape, image_size, progress)):
        images[i] = image
    return images


def _decoded(
    data_dir: Path, files: list[_ImageFile], shape: tuple[int, ...], image_size: int | None, progress: bool
) -> Iterator[np.ndarray]:
    """The images (3, h, w) one after the other. Raises DataError if one is not of this shape."""
    from tqdm import tqdm

    paths = [data_dir / file.name for file in files]

    def decode(path: Path) -> np.ndarray:
        image = decode_image(path, image_size)
        if image.shape != shape[1:]:
            sizes = " and ".join(f"{width}x{height}" for _, height, width in (shape[1:], image.shape))
            raise DataError(f"{paths[0]} and {path} differ in size ({sizes}); give --image-size to resize them all")
        return np.ascontiguousarray(image)

    on_terminal = sys.stderr.isatty()
    if progress and not on_terminal:
        print(f"reading {len(paths):,} images from {data_dir}", flush=True)
    # Threads decode photographs faster, but over files of a few kilobytes they only compete for the interpreter
    # (measured on 2 cores with files of 1 kB: 139 us an image without threads, 250 us with two).
    small = sum(file.state[0] for file in files) < SMALL_FILES * len(files)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(desc="reading images", total=len(paths), disable=not (progress and on_terminal)) as bar,
    ):
        for start in range(0, len(paths), AT_ONCE):
            part = paths[start : start + AT_ONCE]
            for image in map(decode, part) if small else pool.map(decode, part):
                yield image
                bar.update()


def decode_image(path: Path, image_size: int | None) -> np.ndarray:
    """One image as (3, h, w) uint8 RGB; of an animation, the first frame.

    Transparent pixels are blended with white, and 16-bit greyscale is scaled from [0, 65535]; Pillow converts all
    other modes. An orientation in the EXIF data is not applied. ``image_size`` resizes to a square (bilinear,
    antialiased; proportions are not kept).
    """
    from PIL import Image

    with _opened(path) as image:
        pixels = image.width * image.height
        if pixels > MOST_PIXELS and image_size is None:
            raise ValueError(f"{pixels:,} pixels; give --image-size to have them resized")
        if pixels > MOST_PIXELS:
            image.draft("RGB", (image_size or 1, image_size or 1))  # a JPEG is decoded at a fraction of its size
            needed = 12 * image.width * image.height  # bytes: the image, and copies of it in other modes
            if needed > (available_memory() or math.inf):
                raise ValueError(f"decoding {pixels:,} pixels needs {needed / 1e9:,.1f} GB")
        rgb = as_rgb(image)
        if image_size is not None:
            rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(rgb).transpose(2, 0, 1)


@contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """An image file whose header is read. Raises DataError, also if the ``with`` block fails."""
    from PIL import Image, UnidentifiedImageError

    _reading.path = path
    try:
        with open_file(path) as file, Image.open(file, formats=_formats()) as image:
            yield image
    except Exception as error:  # a damaged file makes a decoder raise nearly anything
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise DataError(f"{path} cannot be read as an image ({reason}); repair or remove it") from None


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Let Pillow open images of any size, and collect what it warns of in every thread: a note names the first file."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    warned: dict[str, str] = {}

    def note(message: Warning | str, *where: object) -> None:
        warned.setdefault(str(_reading.path), one_line(str(message)))

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to standard error
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    for path, message in sorted(warned.items())[:1]:
        others = f"; so may {len(warned) - 1:,} other files be" if len(warned) > 1 else ""
        complain(f"note: {path} is read, but may be damaged ({message}){others}")


def as_rgb(image: "Image") -> "Image":
    """An image of any mode as RGB. Raises ValueError if the range of its pixels is unknown."""
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


def _read_cache(cache: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached images, uint8 of this shape, memory-mapped, or None if there are none for this state of the folders.

    A note on standard error says so if they are not what was written.
    """
    try:
        record = read_json(cache.with_suffix(".json"))
        if record["key"] != key:
            return None
        images = map_array(cache)
        if images.dtype != np.uint8 or images.shape != shape or not images.flags.c_contiguous:
            raise ValueError(f"{images.dtype} of shape {images.shape}")
        if record["images"] != hashlib.sha256(images.data).hexdigest():
            raise ValueError("other pixels")
        return images
    except OSError:
        return None
    except Exception as error:  # a damaged cache of any kind is replaced
        complain(f"note: {cache} is damaged or of another version ({one_line(error)}): the images are decoded again")
        return None
