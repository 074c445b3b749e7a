"""Images in the forms that people have, files, PIL images and arrays, as an array like a data set's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.folders import as_rgb, decode_image, pillow_warnings
from distill.data.source import as_array
from distill.errors import DataError

CHANNELS = (1, 3, 4)


def as_images(given: object, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """Images as (n, channels, h, w), uint8 in [0, 255] or float32 in [0, 1].

    ``given`` is a path, a PIL image, an array (h, w), (h, w, c), (c, h, w), (n, h, w), (n, h, w, c) or (n, c, h, w)
    with c 1, 3 or 4, or a list of these. Arrays are integers in [0, 255] or floating point in [0, 1]. Images of another
    ``size`` (h, w) or number of channels are converted as the images of a folder are: to 8 bits, then resized.
    Raises DataError.
    """
    if isinstance(given, list | tuple):
        found = [as_images(each, channels, size) for each in given]
        if not found or len({(each.dtype, each.shape[1:]) for each in found}) > 1:
            raise DataError("images must be of one size and type, and at least one" if found else "there are no images")
        return np.concatenate(found)
    if isinstance(given, str | Path):
        with pillow_warnings():
            return _fitted(Image.fromarray(decode_image(Path(given), None).transpose(1, 2, 0)), channels, size)[None]
    if isinstance(given, Image.Image):
        return _fitted(given, channels, size)[None]
    images = _channels_first(as_array(given, "images"))
    if images.shape[1] == channels and size in (None, images.shape[2:]):
        return images
    if images.dtype != np.uint8:
        images = np.rint(255 * images).astype(np.uint8)
    pictures = [Image.fromarray(each[0] if len(each) == 1 else each.transpose(1, 2, 0)) for each in images]
    return np.stack([_fitted(picture, channels, size) for picture in pictures])


def _channels_first(array: np.ndarray) -> np.ndarray:
    """An array in any layout as (n, c, h, w), uint8 or float32."""
    if array.ndim == 3:  # one image, unless no axis can be its channels
        array = array[None] if array.shape[0] in CHANNELS or array.shape[2] in CHANNELS else array[:, None]
    elif array.ndim == 2:
        array = array[None, None]
    if array.ndim != 4 or 0 in array.shape or not (array.shape[1] in CHANNELS or array.shape[3] in CHANNELS):
        raise DataError(f"images of shape {array.shape} are neither (n, h, w, c) nor (n, c, h, w) with c 1, 3 or 4")
    if array.shape[1] not in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    floats = np.issubdtype(array.dtype, np.floating)
    if not floats and not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"images must be integers or floating point, not {array.dtype}")
    highest = 1 if floats else 255
    if not (array.min() >= 0 and array.max() <= highest):
        raise DataError(f"images of type {array.dtype} must be in [0, {highest}]")
    return np.ascontiguousarray(array, dtype=np.float32 if floats else np.uint8)


def _fitted(image: Image.Image, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """A PIL image as (channels, h, w) uint8."""
    try:
        image = as_rgb(image)
    except ValueError as error:
        raise DataError(f"the image cannot be used ({error})") from None
    if size not in (None, (image.height, image.width)):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    if channels == 1:
        return np.asarray(image.convert("L"))[None]
    return np.asarray(image).transpose(2, 0, 1)
