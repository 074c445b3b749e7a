"""Folders of images, train/<class>/* and test/<class>/*: decoded once, then read from a cache beside them."""

import hashlib
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from distill.config import DataConfig
from distill.data.source import Source
from distill.errors import DataError, one_line
from distill.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL_FILES = 16_384  # bytes per file, on average, below which one thread decodes faster than several


def read_folders(config: DataConfig, progress: bool = False) -> Source:
    """The images below ``config.data_dir``, (n, 3, h, w), resized if ``config.image_size`` is given.

    ``progress`` shows a bar on standard error while they are decoded. Raises DataError.
    """
    data_dir = Path(config.data_dir)
    for folder in (data_dir, data_dir / "train", data_dir / "test"):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}; imagefolder reads DIR/train/<class>/* and DIR/test/<class>/*")
    classes = tuple(entry.name for entry in _entries(data_dir / "train") if entry.is_dir())
    if len(classes) < 2:
        raise DataError(f"{data_dir / 'train'} has {len(classes)} class folders; it needs two or more")
    train = _list_images(data_dir, "train", classes)
    files = train + _list_images(data_dir, "test", classes)
    key = hashlib.sha256(repr([(f.name, f.size, f.mtime_ns) for f in files]).encode()).hexdigest()
    cache = data_dir / f".self-distiller-{config.image_size or 'native'}.npz"
    images = _read_cache(cache, key)
    if images is None:
        images = _decode_all(data_dir, files, config.image_size, progress)
        _write_cache(cache, key, images)
    labels = np.array([file.label for file in files], dtype=np.int64)
    n = len(train)
    return Source("imagefolder", images[:n], labels[:n], images[n:], labels[n:], classes, flip=True)


class _ImageFile(NamedTuple):
    """An image file, with the size and time that show whether it has changed."""

    name: str  # relative to the data folder
    label: int
    size: int  # bytes
    mtime_ns: int  # when it was last changed


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _list_images(data_dir: Path, part: str, classes: tuple[str, ...]) -> list[_ImageFile]:
    """The images of a part, sorted by class and name, without hidden files and other formats."""
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
            stat = file.stat()
            found.append(_ImageFile(f"{part}/{folder.name}/{file.name}", label, stat.st_size, stat.st_mtime_ns))
    if not found:
        raise DataError(f"{data_dir / part} has no class folders; it needs DIR/{part}/<class>/*")
    return found


def _image_extensions() -> set[str]:
    """The file extensions, in lower case and with a dot, that Pillow can open."""
    from PIL import Image

    Image.preinit()  # the common formats first: Pillow tries formats in the order in which they were loaded
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
    numbers = range(len(paths))
    with ThreadPoolExecutor() as pool:
        if sum(file.size for file in files) < SMALL_FILES * len(files):
            # Threads decode photographs faster, but over files of a few kilobytes they only compete for the interpreter
            # (measured on 2 cores with files of 1 kB: 139 us an image without threads, 250 us with two).
            done: Iterable[None] = map(fill, numbers)
        else:
            done = pool.map(fill, numbers)
        for _ in tqdm(done, "reading images", len(paths), disable=not (progress and on_terminal)):
            pass
    return images


def _decode(path: Path, image_size: int | None) -> np.ndarray:
    """One image as (3, h, w) uint8 RGB; of an animation, the first frame.

    Transparent pixels are blended with white, and 16-bit greyscale is scaled from [0, 65535]; Pillow converts all
    other modes. An orientation in the EXIF data is not applied. ``image_size`` resizes to a square (bilinear,
    antialiased; proportions are not kept).
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


def _as_rgb(image: "Image") -> "Image":
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


def _read_cache(cache: Path, key: str) -> np.ndarray | None:
    """The cached images (n, 3, h, w), or None if there are none for this state of the folders."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["images"] if str(stored["key"]) == key else None
    except Exception:  # a damaged cache of any kind is replaced
        return None


def _write_cache(cache: Path, key: str, images: np.ndarray) -> None:
    """Write the cache; if that fails, a note on standard error says so, and the run continues."""

    def save(file: BinaryIO) -> None:
        np.savez(file, images=images, key=np.array(key))

    try:
        write_atomically(cache, save)
    except OSError as error:
        reason = error.strerror
        print(f"note: {cache} cannot be written ({reason}): the next run will decode the images again", file=sys.stderr)
