import pytest


@pytest.fixture
def folder(tiny_imagefolder) -> dict:
    """Options for images that worker processes can read for themselves."""
    return {"dataset": "imagefolder", "data_dir": str(tiny_imagefolder), "label_noise": 0.25}
