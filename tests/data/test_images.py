"""Images in the forms that people have: every form of the same picture gives the same array."""

import numpy as np
import pytest
from PIL import Image

from distill.data.images import as_images
from distill.errors import DataError

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)  # h, w, c
EXPECTED = PICTURE.transpose(2, 0, 1)[None]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    return path


def test_every_form_of_a_picture_is_the_same(file):
    forms = [
        file,
        str(file),
        Image.fromarray(PICTURE),
        PICTURE,
        PICTURE[None],
        EXPECTED,
        EXPECTED[0],
        [file],
        [PICTURE],
    ]
    for form in [*forms, PICTURE.astype(np.int64), Image.fromarray(PICTURE).convert("RGBA")]:
        found = as_images(form, 3, (6, 8))
        assert found.dtype == np.uint8
        assert np.array_equal(found, EXPECTED)


def test_several_pictures_are_one_array(file):
    assert np.array_equal(as_images([file, PICTURE[::-1]], 3, None)[1], EXPECTED[0, :, ::-1])
    assert as_images(np.stack([PICTURE] * 5), 3, None).shape == (5, 3, 6, 8)
    assert as_images(np.zeros((5, 6, 8), np.uint8), 1, None).shape == (5, 1, 6, 8)


def test_floating_point_stays_so_unless_it_must_be_converted():
    floats = EXPECTED / 255
    assert np.array_equal(as_images(floats, 3, (6, 8)), floats.astype(np.float32))
    assert np.array_equal(as_images(floats, 3, (3, 4)), as_images(EXPECTED, 3, (3, 4)))


def test_a_picture_is_resized_and_made_grey_as_a_folders_images_are(file):
    from distill.data.folders import decode_image

    assert np.array_equal(as_images(file, 3, (4, 4))[0], decode_image(file, 4))
    assert np.array_equal(as_images(PICTURE, 1, None)[0, 0], np.asarray(Image.fromarray(PICTURE).convert("L")))
    grey = np.zeros((6, 8), np.uint8)
    assert as_images(grey, 3, (2, 2)).shape == (1, 3, 2, 2)


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (np.zeros((6, 8, 5, 7)), r"images of shape \(6, 8, 5, 7\)"),
        (np.zeros((2, 2, 2, 2, 2)), "images of shape"),
        (3, "images of shape"),
        ([], "there are no images"),
        ([PICTURE, PICTURE[:3]], "of one size and type"),
        (PICTURE.astype(float), r"must be in \[0, 1\]"),
        (np.full((3, 2, 2), np.nan), r"must be in \[0, 1\]"),
        (PICTURE.astype(int) - 1, r"must be in \[0, 255\]"),
        (np.array([["a", "b"]]), "must be integers or floating point"),
        ("no/such.png", "no/such.png cannot be read as an image"),
    ],
)
def test_what_is_no_image_is_one_line(images, what):
    with pytest.raises(DataError, match=what) as error:
        as_images(images, 3, None)
    assert "\n" not in str(error.value)
