"""The user's functions for data sets and networks, which a configuration names as ``package.module:function``."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from distill.errors import ConfigError, one_line


def named_object(text: str, what: str) -> Callable[..., Any]:
    """The function, class or other callable that ``text`` names as ``package.module:function``.

    ``what`` is the option, such as ``dataset``, for the messages. The module is found on ``sys.path``. Raises
    ConfigError if the name has another form, if the module cannot be imported, or if it has no such callable.
    """
    module_name, _, name = text.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ConfigError(f"{what} {text!r} is not of the form package.module:function")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # the module's own code runs here and may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"{what} {text}: {module_name} cannot be imported ({reason})") from error
    if not hasattr(module, name):
        raise ConfigError(f"{what} {text}: {module_name} has no function {name}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"{what} {text}: {name} is not a function but of type {type(found).__name__}")
    return found


def error_location(text: str, error: BaseException) -> str:
    """`` in line 7 of my_data.py``: the last line of ``text``'s module in the traceback; "" without one."""
    file = import_module(text.partition(":")[0]).__file__
    line = None
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return "" if line is None else f" in line {line} of {file}"
