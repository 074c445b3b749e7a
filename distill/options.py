"""Sections of options: dataclass fields that carry their help, and one check for every value.

A field becomes a command-line option (``add_option``) and a key in TOML (configfile.py). A section checks all values
when it is constructed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar

from distill.arguments import Range
from distill.errors import ConfigError, one_line, shown


def option(
    default: Any,
    help: str,
    within: Range | None = None,
    *,
    choices: tuple = (),
    words: tuple[str, ...] = (),
    also: tuple = (),
    identity: bool = True,
    path: bool = False,
) -> Any:
    """A dataclass field that is an option.

    within: the range of a number, which every numeric option has unless it has choices. choices: the legal values, if
    there are few. words: texts taken where the type is a number. also: values that a configuration file may hold and
    ``--help`` does not offer. identity: whether the value affects results; if not, it may change when a run resumes.
    path: whether it is a path, in which ``~`` is the home folder.
    """
    metadata = dict(help=help, within=within, choices=choices, words=words, also=also, identity=identity, path=path)
    return field(default=default, metadata=metadata)


def require(condition: object, message: str) -> None:
    """Raise ConfigError with ``message`` unless the condition is true."""
    if not condition:
        raise ConfigError(message)


def require_type(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Raise ConfigError unless an argument of a public function, ``name``, is of its type; ``what`` says which."""
    require(isinstance(value, kind), f"{name} must be {what}, not {one_line(shown(value))}")


@dataclass(frozen=True)
class Section:
    """Base class of a section: converts and checks all values on construction."""

    section: ClassVar[str]  # its name in TOML

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                self._set(f.name, checked(type(self), f.name, value))
        for name, value in self.resolved().items():
            self._set(name, value)
        self.check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def resolved(self) -> dict[str, Any]:
        """Values of fields whose default depends on other fields. A written configuration spells them out."""
        return {}

    def check(self) -> None:
        """Raise ConfigError for illegal values and combinations."""


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def field_type(cls: type[Section], name: str) -> tuple[type, int]:
    """The scalar type of a field and its nesting: 0 for a value, 1 for several, 2 for lists of several.

    ``seed: tuple[int, ...]`` gives ``(int, 1)``. Of a union such as ``int | None`` the first member counts.
    """
    hint = _hints(typing.cast(Any, cls))[name]
    depth = 0
    while (origin := typing.get_origin(hint)) is not None:
        if origin is tuple:
            depth += 1
        hint = typing.get_args(hint)[0]
    return hint, depth


def may_be_axis(cls: type[Section], f: dataclasses.Field) -> bool:
    """Whether an option may have several values, each for a run of its own: it changes results and has one value."""
    return f.metadata["identity"] and field_type(cls, f.name)[1] == 0 and f.name != "distillation_steps"


def checked(cls: type[Section], name: str, value: Any) -> Any:
    """A value as a field of a section holds it. Raises ConfigError."""
    f = cls.__dataclass_fields__[name]
    kind, depth = field_type(cls, f.name)
    value = _plain(value)
    if depth == 2 and isinstance(value, list) and not any(isinstance(_plain(v), list) for v in value):
        value = [value] if value else []  # a single inner list
    return _nested(cls, f, value, kind, depth)


def _plain(value: Any) -> Any:
    """A tuple or range as a list, numbers and arrays of NumPy and torch as Python's numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple | range) else value


def _nested(cls: type[Section], f: dataclasses.Field, value: Any, kind: type, depth: int) -> Any:
    value = _plain(value)
    if depth == 0:
        return _scalar(cls, f, value, kind)
    values = value if isinstance(value, list) else [value]
    return tuple(_nested(cls, f, v, kind, depth - 1) for v in values)


def _scalar(cls: type[Section], f: dataclasses.Field, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        value = _as_float(value)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    choices = f.metadata["choices"]
    words = f.metadata["words"]
    legal = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    or_words = "".join(f" or {word}" for word in words)
    name = f"{cls.section}.{f.name}"
    require(legal or value in words, f"{name} must be of type {kind.__name__}{or_words}, not {shown(value)}")
    offered = ", ".join(map(str, choices))
    require(
        not choices or value in choices or value in f.metadata["also"],
        f"{f.name} must be one of {offered}, not {shown(value) if isinstance(value, int) else value}",
    )
    if f.metadata["within"] is not None and not isinstance(value, str):
        f.metadata["within"].check(f.name, value)
    if kind is str:
        require("\0" not in value, f"{name} has a null character in it")
        require(value or not f.metadata["path"], f"{name} must not be empty")
        value = os.path.expanduser(value) if f.metadata["path"] else value
    return value


def _as_float(value: float) -> float:
    """A float, infinite for an int that is too large. -0.0, which would have another name, becomes 0.0."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return math.inf


METAVARS = {"output": "DIR", "data_dir": "DIR", "teacher_ckpt": "FILE", "alpha_schedule": "ALPHA"}


def flag(name: str) -> str:
    """The command-line option of a field: ``--label-noise``."""
    return f"--{name.replace('_', '-')}"


def add_option(
    group: argparse._ArgumentGroup, cls: type[Section], f: dataclasses.Field, axis: bool = False, **options: Any
) -> None:
    """Add the command-line option of a section's field to a group; ``options`` go to ``add_argument``.

    With ``axis`` it takes several values, if it is not a switch.
    """
    kind, depth = field_type(cls, f.name)
    word = flag(f.name)
    text = f.metadata["help"]
    if kind is bool:
        default = "on" if f.default else "off"
        help = f"{text} [default: {default}]"
        group.add_argument(word, action=argparse.BooleanOptionalAction, help=help, **options)
        return
    if f.default not in (None, ()):
        values = f.default if isinstance(f.default, tuple) else (f.default,)
        text += f" [default: {' '.join(map(str, values))}]"
    choices = f.metadata["choices"]
    options |= {"nargs": "+"} if depth or axis else {}
    if depth == 2:
        options["action"] = "append"
    group.add_argument(
        word,
        type=_reader(kind, f.metadata["words"]),
        choices=choices or None,
        metavar=None if choices else METAVARS.get(f.name, f.name.split("_")[-1].upper()),
        help=text.replace("%", "%%"),
        **options,
    )


def _reader(kind: type, words: tuple[str, ...]) -> Callable[[str], Any]:
    """An argparse type: one of ``words``, or a value of ``kind``."""

    def read(text: str) -> Any:
        return text if text in words else kind(text)

    read.__name__ = " or ".join((kind.__name__, *words))  # argparse names the type by this in its errors
    return read
