"""Errors a user can fix. Each message is one line: what is wrong, where, and what to do about it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error the user can fix."""


class ConfigError(UserError):
    """A configuration that cannot run as it is, here and now."""


class DataError(UserError):
    """Data that cannot be used."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)``, X the known name closest to ``name``; an empty text if none is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""
