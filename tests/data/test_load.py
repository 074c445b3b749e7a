"""load.py: from the name of a data set to its Source."""

import subprocess
import sys

import pytest

from distill.config import DataConfig
from distill.data.load import READERS, load_source
from distill.data.source import Source
from distill.errors import DataError
from distill.sections import DATASETS


def test_importing_the_module_imports_no_heavy_package():
    heavy = ("torch", "torchvision", "sklearn", "PIL", "tqdm", "scipy")
    program = f"import sys, distill.data; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_an_unknown_name_is_refused():
    with pytest.raises(DataError, match="'custom'; arrays from Python go through from_arrays"):
        load_source(DataConfig("custom"))


def test_every_name_that_the_configuration_takes_has_a_reader():
    assert set(DATASETS) == READERS.keys()


# --------------------------------------------------------------------------------------- functions named by the user

MODULE = """
import numpy as np
from distill import from_arrays

def stripes(data_dir):
    images = np.zeros((6, 4, 4), np.uint8)
    images[::2, 1] = int((data_dir / "brightness").read_text())
    return from_arrays(images, np.arange(6) % 2, images[:2], [0, 1], classes=("bright", "dark"), flip=False)

def floats(data_dir):
    images = np.zeros((6, 4, 4))
    return from_arrays(images, np.arange(6) % 2, images[:2], [0, 1])

def raising(data_dir):
    raise ValueError("two\\nlines")

def arrays(data_dir):
    return np.zeros((6, 4, 4), np.uint8), np.arange(6)
"""


@pytest.fixture
def my_data(tmp_path, monkeypatch):
    """A module of the user's, ``my_data``, and a data folder."""
    (tmp_path / "my_data.py").write_text(MODULE)
    (tmp_path / "brightness").write_text("200")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_data", None)


def load(dataset, data_dir):
    return load_source(DataConfig(dataset, data_dir=str(data_dir)))


def test_a_function_of_the_user_is_called_with_the_data_folder(my_data):
    source = load("my_data:stripes", my_data)
    assert isinstance(source, Source)
    assert (source.name, source.classes, source.flip) == ("my_data:stripes", ("bright", "dark"), False)
    assert source.train_images.shape == (6, 1, 4, 4)
    assert source.train_images.max() == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_data:", "is not of the form package.module:function"),
        ("no_such_module:load", "no_such_module cannot be imported"),
        ("my_data:load", "my_data has no function load"),
        ("my_data:floats", r"failed in line 12 of .*my_data.py: train_images must be uint8"),
        ("my_data:raising", r"failed in line 15 of .*my_data.py: ValueError: two lines"),
        ("my_data:arrays", r"returned an object of type tuple; return distill.from_arrays\(\.\.\.\)"),
    ],
)
def test_errors_of_a_data_function_are_one_line_with_its_name(my_data, name, message):
    with pytest.raises(DataError, match=message) as caught:
        load(name, my_data)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_in_a_data_function_is_reported_as_its_error(my_data):
    (my_data / "brightness").unlink()
    with pytest.raises(DataError, match=r"dataset my_data:stripes failed in line 7 .*FileNotFoundError.*brightness"):
        load("my_data:stripes", my_data)
