"""Configurations as dictionaries and TOML files, with errors that name the key and the nearest known one."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from distill.config import SECTION_OF, SECTIONS, Config
from distill.errors import ConfigError, suggestion
from distill.files import read_text
from distill.options import require


def from_dict(values: Mapping[str, Any]) -> Config:
    """A Config from ``{"train": {"lr": 0.1}, ...}``.

    Raises ConfigError for an unknown section or key (naming the nearest), a wrong type or an illegal value.
    """
    sections: dict[str, Any] = {}
    for section, given in values.items():
        require(section in SECTIONS, f"unknown section [{section}]{suggestion(section, SECTIONS)}")
        require(isinstance(given, dict), f"{section} must be a section: write [{section}] on its own line")
        names = [f.name for f in fields(SECTIONS[section])]
        for name in given:
            if name not in names:
                hint = f" (it belongs in [{SECTION_OF[name]}])" if name in SECTION_OF else suggestion(name, names)
                raise ConfigError(f"unknown key {section}.{name}{hint}")
        sections[section] = SECTIONS[section](**given)
    return Config(**sections)


def read_toml(path: Path) -> dict[str, dict]:
    """The sections of a TOML file. Raises ConfigError if it cannot be read."""
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def read_config(path: Path) -> Config:
    """The configuration in a TOML file. Raises ConfigError that names the file."""
    sections = read_toml(path)
    try:
        return from_dict(sections)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML that ``read_toml`` and ``from_dict`` take back. Fields that are None are left out."""
    import tomli_w

    sections = {
        section: {name: _lists(v) for name, v in values.items() if v is not None}
        for section, values in asdict(config).items()
    }
    sections["run"].pop("output", None)  # so that the file, run again elsewhere, does not write over this run
    return tomli_w.dumps(sections)


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value
