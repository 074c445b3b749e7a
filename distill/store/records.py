"""JSON and zip files of a run, verified when they are read: JSON holds the SHA-256 of its own content, a zip CRCs."""

import errno
import hashlib
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

from distill.errors import ConfigError, one_line
from distill.files import open_file, write_atomically

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
            text = opened.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError("it is too large")
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


def digest_of_parts(file: Path | io.BytesIO) -> str:
    """The SHA-256 of what a zip file of arrays or tensors holds, however it is packed.

    Raises DamagedRecordError if a checksum is wrong or an entry is compressed, which NumPy and torch never do.
    """
    digest = hashlib.sha256()
    try:
        with open_file(file) if isinstance(file, Path) else file as content, zipfile.ZipFile(content) as parts:
            content.seek(0)
            if content.read(4) != b"PK\x03\x04":  # zipfile takes anything before it
                raise ValueError("it does not begin as a zip file")
            infos = sorted(parts.infolist(), key=lambda info: info.filename)
            if sum(info.file_size for info in infos) > content.seek(0, io.SEEK_END):
                raise ValueError("it is compressed")
            for info in infos:
                digest.update(info.filename.encode(errors="replace") + parts.read(info))
    except Exception as error:  # zipfile raises a dozen kinds of errors
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a torn file has positions before its beginning
            raise
        raise DamagedRecordError(f"{file} is damaged ({one_line(error)})") from None
    return digest.hexdigest()
