"""Errors a user can fix. Each message is one line: what is wrong, where, and what to do about it."""

import difflib
import os
from collections.abc import Iterable

LONGEST_WORD = 250  # characters; of a longer word in a message, and a longer message, the two ends are shown
LONGEST = 1000


class UserError(ValueError):
    """An error the user can fix."""


class ConfigError(UserError):
    """A configuration that cannot run as it is, here and now."""


class TrainingError(UserError):
    """A model that cannot be trained; others of its run may be."""


class DataError(UserError):
    """Data that cannot be used."""


def printable(text: str) -> str:
    """Text that cannot control a terminal: newlines stay, other such characters become escapes like ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException | str) -> str:
    """A message on one line, printable and shortened if need be; the error's type if it has no message."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | os.PathLike):
        text = f"{os.fspath(error.filename)}: {error.strerror}"  # without "[Errno 28]"
    words = [_shortened(printable(word), LONGEST_WORD) for word in text.split()]
    return _shortened(" ".join(words), LONGEST) or type(error).__name__


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[:end]}...({len(text) - 2 * end:,} characters)...{text[-end:]}"


def shown(value: object) -> str:
    """The ``repr`` of a value; of one that Python cannot print, such as a number of many digits, its type."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to print"


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the closest known name, or nothing."""
    found = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""
