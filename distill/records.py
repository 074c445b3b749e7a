"""JSON and zip files, verified when they are read: JSON holds the SHA-256 of its own content, a zip CRCs."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import typing
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.environment import available_memory
from distill.errors import ConfigError, one_line
from distill.files import open_file, write_atomically

if typing.TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES = 64 * 2**20  # of a file that is read; a result.json has some thousands


class DamagedRecordError(ConfigError):
    """A file of a run that does not hold what the run wrote."""


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with the SHA-256 of its content, floats in full precision."""
    write_atomically(file, json.dumps(content | {"sha256": _digest(content)}, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object that ``write_json`` has written, or an older version, which added no SHA-256.

    Raises FileNotFoundError; ConfigError of one line if the file is damaged or cannot be read.
    """
    try:
        with open_file(file) as opened:
            if os.fstat(opened.fileno()).st_size > MOST_BYTES:
                raise ValueError("it is too large")
            text = opened.read()
        content = json.loads(text.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if content.get("sha256", _digest(content)) != _digest(content):
            raise ValueError("its SHA-256 is not the recorded one")
        return content
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
    except RecursionError:
        raise DamagedRecordError(f"{file} is damaged (it is nested too deeply)") from None
    except ValueError as error:
        raise DamagedRecordError(f"{file} is damaged ({one_line(error)})") from None


def _digest(content: dict[str, Any]) -> str:
    """The SHA-256 of a JSON object without its ``sha256``, whatever the order of its keys."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finite(text: str) -> float:
    """A float; no file of a run holds NaN or infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


@contextmanager
def opened_zip(file: Path | io.BytesIO) -> Iterator[zipfile.ZipFile]:
    """A zip file that is open in the ``with`` block. All that its content raises there is a ValueError of one line.

    Raises OSError too.
    """
    try:
        with open_file(file) if isinstance(file, Path) else file as content, zipfile.ZipFile(content) as parts:
            content.seek(0)
            if content.read(4) != b"PK\x03\x04":  # zipfile takes anything before it
                raise ValueError("it does not begin as a zip file")
            yield parts
    except Exception as error:  # zipfile and NumPy raise a dozen kinds of errors
        torn = isinstance(error, OSError) and error.errno == errno.EINVAL  # it has positions before its beginning
        if isinstance(error, OSError) and not (torn and error.filename is None):
            raise
        raise ValueError(one_line(error)) from None


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an NPZ file, all or those of ``names`` that are in it. No code in it is run.

    Raises OSError, and ValueError of one line if it is damaged, is no such file or does not fit in memory.
    """
    import numpy as np

    arrays = {}
    with opened_zip(path) as parts, warnings.catch_warnings(action="ignore"):
        chosen = {part.filename.removesuffix(".npy"): part for part in parts.infolist()}
        chosen = {name: part for name, part in chosen.items() if names is None or name in names}
        size = sum(part.file_size for part in chosen.values())
        free = available_memory()
        if free is not None and size > free:
            raise ValueError(f"its arrays need {size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free")
        for name, part in chosen.items():
            with parts.open(part) as content:
                arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
                if content.read(1) or arrays[name].size > part.file_size:  # at its end the checksum is verified
                    raise ValueError(f"{part.filename} is not as long as its array")
    return arrays


def map_array(path: Path) -> NDArray[Any]:
    """The array of an NPY file, memory-mapped and read-only. Raises OSError, and ValueError of one line."""
    import numpy as np

    try:
        with open_file(path) as file, warnings.catch_warnings(action="ignore"):
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
            start = file.tell()
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or not size or os.fstat(file.fileno()).st_size != start + size:
                raise ValueError("it is empty, holds objects, or is not as long as its array")
            return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
    except OSError:
        raise
    except Exception as error:  # NumPy raises many kinds of errors
        raise ValueError(f"{path.name}: {one_line(error)}") from None


def digest_of_arrays(arrays: Iterable[NDArray[Any]], start: str = "") -> str:
    """The SHA-256 of a text and of the shapes and contents of arrays."""
    import numpy as np

    digest = hashlib.sha256(start.encode())
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def digest_of_parts(file: Path | io.BytesIO) -> str:
    """The SHA-256 of what a zip file of arrays or tensors holds, however it is packed.

    Raises OSError, and DamagedRecordError if a checksum is wrong or an entry is compressed, which NumPy and torch
    never do.
    """
    digest = hashlib.sha256()
    try:
        with opened_zip(file) as parts:
            infos = sorted(parts.infolist(), key=lambda info: info.filename)
            if any(info.file_size > info.compress_size for info in infos):
                raise ValueError("it is compressed")
            for info in infos:
                digest.update(info.filename.encode(errors="replace") + parts.read(info))
    except ValueError as error:
        raise DamagedRecordError(f"{file} is damaged ({error})") from None
    return digest.hexdigest()
