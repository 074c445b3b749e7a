"""Loading the data set that a configuration names: one that this package reads, or a function of the user's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distill.config import DataConfig
from distill.data.arrays import read_array_data
from distill.data.cifar import read_cifar
from distill.data.digits import read_digits
from distill.data.folders import read_folders
from distill.data.source import Source
from distill.errors import ConfigError, DataError, UserError, one_line
from distill.named import error_location, named_object

# A reader takes the section [data] and whether to show progress on standard error.
READERS: dict[str, Callable[[DataConfig, bool], Source]] = {
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "digits": read_digits,
    "imagefolder": read_folders,
    "arrays": read_array_data,
    "features": read_array_data,
}


def load_source(config: DataConfig, progress: bool = False) -> Source:
    """Read the data set that ``config`` names, or those of its classes that ``config.classes`` names.

    ``progress`` shows a bar on standard error if it takes long. A name with a colon, ``package.module:function``, is a
    function that takes the data folder (a ``Path``) and returns a Source, made with ``distill.from_arrays``. Raises
    DataError for anything missing, corrupt or unreachable.
    """
    if ":" in config.dataset:
        return _call(config.dataset, Path(config.data_dir)).only(config.classes)
    if config.dataset not in READERS:
        raise DataError(f"no data set on disk is called {config.dataset!r}; arrays from Python go through from_arrays")
    try:
        source = READERS[config.dataset](config, progress)
    except OSError as error:  # errors that a reader does not expect: no permission, a failing disk
        raise DataError(f"{config.data_dir} cannot be read ({one_line(error)})") from None
    return source.only(config.classes)


def _call(name: str, data_dir: Path) -> Source:
    """The Source that the user's function returns for ``data_dir``, with ``name`` as its name."""
    try:
        function = named_object(name, "dataset")
    except ConfigError as error:
        raise DataError(str(error)) from error
    try:
        source = function(data_dir)
    except Exception as error:  # the user's code may raise anything
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise DataError(f"dataset {name} failed{error_location(name, error)}: {kind}{one_line(error)}") from error
    if not isinstance(source, Source):
        raise DataError(
            f"dataset {name} returned an object of type {type(source).__name__}; return distill.from_arrays(...)"
        )
    return replace(source, name=name)
