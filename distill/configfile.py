"""Configurations as dictionaries and TOML files, with errors that name the key and the nearest known one."""

import codecs
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from distill.config import SECTION_OF, SECTIONS, Config
from distill.errors import ConfigError, shown, suggestion
from distill.files import open_file
from distill.noise import NOISE_KINDS
from distill.options import flag, require

LARGEST_FILE = 1_000_000  # bytes
FORMAT = 1  # of config.toml and result.json: raise it when an older program would misread them
DEEPEST = 100  # tables in one another
HASH = "# SHA-256 of the lines below: "


def from_dict(values: Mapping[str, Any]) -> Config:
    """A Config from ``{"train": {"lr": 0.1}, ...}``.

    Raises ConfigError for an unknown section or key (naming the nearest), a wrong type or an illegal value.
    """
    check_format(values)
    sections: dict[str, Any] = {}
    for section, given in values.items():
        if section == "format":
            continue
        require(section in SECTIONS, f"unknown section [{section}]{suggestion(section, SECTIONS)}")
        require(isinstance(given, dict), f"{section} must be a section: write [{section}] on its own line")
        names = [f.name for f in fields(SECTIONS[section])]
        for name in given:
            if name not in names:
                hint = f" (it belongs in [{SECTION_OF[name]}])" if name in SECTION_OF else suggestion(name, names)
                raise ConfigError(f"unknown key {section}.{name}{hint}")
        sections[section] = SECTIONS[section](**given)
    return Config(**sections)


def merged(sections: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Sections with the options of a command line, by name, in the place of theirs.

    Raises ConfigError for an option that would have no effect. In a file it may wait for another command.
    """
    result = dict(sections)
    for name, value in options.items():
        section = SECTION_OF[name]
        held = result.get(section, {})
        if isinstance(held, dict):  # from_dict refuses what is no section
            result[section] = held | {name: value}

    def has(name: str, value: Any) -> bool:
        held = result.get(SECTION_OF[name])
        return isinstance(held, dict) and held.get(name) == value

    for name in options:
        ignored = name.startswith("slurm_") and not has("executor", "slurm")
        require(not ignored, f"{flag(name)} is for --executor slurm, which is not given")
    require("reg_coef" not in options or not has("reg", "none"), "--reg-coef is for --reg norm or l2, not none")
    kind = options.get("label_noise_kind")
    ignored = isinstance(kind, str) and not NOISE_KINDS[kind].sets_rate and has("label_noise", None)
    require(not ignored, f"--label-noise-kind {kind} needs --label-noise")
    return result


def check_format(content: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError, beginning with ``where``, if a newer program wrote this config.toml or result.json."""
    found = content.get("format", FORMAT)
    newer = f"{where}written by a newer version of this program"
    require(found == FORMAT, f"{newer} (format {shown(found)}; this one reads {FORMAT}): use that version")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ConfigError if it cannot be read.

    A byte order mark is skipped. Bytes that are not UTF-8 stand for themselves, as in Python's names of files.
    """
    return _parsed(path, _read(path))


def read_config(run: Path) -> dict[str, Any]:
    """The content of the config.toml of a run or a study. Raises ConfigError if it cannot be read or is damaged.

    The first line holds a SHA-256 of the others. A file without it is accepted: an older version wrote it, or a user
    edited it.
    """
    file = run / "config.toml"
    content = _read(file)
    recorded = re.match(rf"{HASH}([0-9a-f]+)\n".encode(), content)
    if recorded and hashlib.sha256(content[recorded.end() :]).hexdigest() != recorded[1].decode():
        raise ConfigError(
            f"{file} is damaged or was edited (its SHA-256 is not the recorded one): restore it, or delete its first "
            "line to use it as it is"
        )
    found = _parsed(file, content)
    require(bool(found), f"{file} is damaged (it is empty): restore it, or choose another --output")
    return found


def _read(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path} is too large for a file of options: more than {LARGEST_FILE:,} bytes")
    return content


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
        keys = (line.partition("=")[0] for line in text.splitlines())
        if any(key.count(".") - key.count(",") > DEEPEST for key in keys):  # the parser takes minutes
            raise RecursionError
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError:  # a number of more digits than Python reads, or an impossible date
        raise ConfigError(f"{path}: a number has too many digits, or a date does not exist") from None


def sections_of(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as dictionaries that ``from_dict`` takes back. Fields that are None are left out."""
    return {section: {k: v for k, v in values.items() if v is not None} for section, values in asdict(config).items()}


def to_toml(config: Config) -> str:
    """The configuration as TOML that ``read_toml`` and ``from_dict`` take back."""
    return dump_toml(sections_of(config))


def dump_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections as TOML below a SHA-256, without the output: the file, run elsewhere, must not write over this run."""
    import tomli_w

    kept = {name: {k: _lists(v) for k, v in values.items() if k != "output"} for name, values in sections.items()}
    text = tomli_w.dumps({"format": FORMAT, **kept})
    return f"{HASH}{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}\n{text}"


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value
