"""folders.py: layouts and files that users have by accident, damage, and files made to do harm."""

import io
import os
import shutil
import struct
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from distill.config import DataConfig
from distill.data import folders
from distill.data.load import load_source
from distill.errors import DataError


@pytest.fixture
def tree(tiny_imagefolder, tmp_path):
    """A copy of the folder to change, without a cache."""
    shutil.copytree(tiny_imagefolder, tmp_path / "tree", ignore=shutil.ignore_patterns(".*"))
    return tmp_path / "tree"


def load_tree(data_dir, image_size=None):
    return load_source(DataConfig("imagefolder", data_dir=str(data_dir), image_size=image_size))


def cache_of(data_dir):
    return folders.cache_file(DataConfig("imagefolder", data_dir=str(data_dir)))


def refused_tree(data_dir, image_size=None) -> str:
    with pytest.raises(DataError) as caught:
        load_tree(data_dir, image_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_in_subfolders_are_read_in_the_order_of_their_names(tree):
    expected = load_tree(tree)
    cats = tree / "train" / "cat"
    (cats / "0003_" / "more").mkdir(parents=True)
    for number in range(4, 12):
        part = cats / "0003_" / ("more" if number > 7 else "")
        (cats / f"{number:04}.png").rename(part / f"{number:04}.png")
    assert load_tree(tree).fingerprint == expected.fingerprint


def test_a_link_that_leads_back_is_named(tree):
    (tree / "train" / "cat" / "loop").symlink_to(tree / "train")
    assert f"{tree / 'train' / 'cat' / 'loop'} is a link that leads back" in refused_tree(tree)


def test_other_files_beside_images_are_left_out(tree):
    expected = load_tree(tree)
    for name in ("a.h5", "a.mpg", "a.ps", "a.eps", "a.grib", "a.wmf", "a.txt", ".DS_Store", "Thumbs.db", "a"):
        (tree / "train" / "cat" / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert load_tree(tree).fingerprint == expected.fingerprint


def test_a_script_with_the_name_of_an_image_is_not_run(tree):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "EPS")
    (tree / "train" / "cat" / "0000.png").write_bytes(buffer.getvalue())
    assert "0000.png cannot be read as an image (its format is not known" in refused_tree(tree)


def test_class_names_that_look_alike_are_told_apart(tree):
    (tree / "train" / "cat").rename(tree / "train" / unicodedata.normalize("NFC", "Zoë"))
    (tree / "test" / "cat").rename(tree / "test" / unicodedata.normalize("NFD", "Zoë"))
    assert r"(its name is 'Zoe\u0308', that one's 'Zo\xeb')" in refused_tree(tree)


def test_images_that_do_not_fit_in_memory_say_how_large_they_are(tree):
    message = refused_tree(tree, image_size=65_536)
    assert "the 54 images in" in message
    assert "need 695.8 GB as 65,536x65,536 pixels" in message
    assert "smaller --image-size" in message


def png(width: int, height: int) -> bytes:
    """A small PNG file that claims a size, with a row of white pixels or less."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", ["0000.png", "0005.png"])  # the first tells the size of all
def test_an_image_that_claims_a_huge_size_is_named(tree, name):
    path = tree / "train" / "cat" / name
    path.write_bytes(png(2**31 - 1, 2**31 - 1))
    assert "GB" in refused_tree(tree, 8)
    assert "GB are free" in refused_tree(tree) if name == "0000.png" else str(path) in refused_tree(tree)


def test_an_image_beyond_pillows_limit_is_read_if_it_is_resized(tree, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    monkeypatch.setattr(folders, "MOST_PIXELS", 10_000)
    for name in ("0005.png", "0006.jpg"):
        Image.new("RGB", (200, 100), "white").save(tree / "train" / "cat" / name)
    (tree / "train" / "cat" / "0006.png").unlink()
    assert "0005.png cannot be read as an image (20,000 pixels; give --image-size" in refused_tree(tree)
    assert load_tree(tree, 8).train_images[5:7].min() == 255
    assert capsys.readouterr().err == ""
    assert Image.MAX_IMAGE_PIXELS == 5_000


def test_what_pillow_warns_of_is_one_note(tree, capfd, monkeypatch):
    as_rgb = folders.as_rgb

    def warning(image):
        warnings.warn("Corrupt EXIF data.\n  Expecting 12 bytes", stacklevel=2)
        return as_rgb(image)

    monkeypatch.setattr(folders, "as_rgb", warning)
    load_tree(tree)
    [line] = capfd.readouterr().err.splitlines()
    first = tree / "test" / "cat" / "0000.png"
    assert line == (
        f"note: {first} is read, but may be damaged (Corrupt EXIF data. Expecting 12 bytes); so may 53 other files be"
    )


def test_a_fifo_is_never_waited_for(tree):
    expected = load_tree(tree)
    cache = cache_of(tree)
    cache.unlink()
    os.mkfifo(cache)
    assert load_tree(tree).fingerprint == expected.fingerprint
    os.mkfifo(tree / "train" / "cat" / "0005a.png")
    assert "0005a.png cannot be read as an image" in refused_tree(tree)


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images.astype(np.float32),
        lambda images: images[:, :, :8],
        lambda images: images[:-1],
        lambda images: np.concatenate([images, images[:, :1]], 1),
        lambda images: 255 - images,
        lambda images: np.asfortranarray(images)[::-1],
        lambda images: np.array("text"),
    ],
    ids=range(7),
)
def test_a_cache_of_other_arrays_is_made_again(tree, capsys, change):
    first = load_tree(tree)
    cache = cache_of(tree)
    content = cache.read_bytes()
    changed = change(np.load(cache))
    cache.unlink()
    np.save(cache, changed)
    assert load_tree(tree).fingerprint == first.fingerprint
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {cache} is damaged or of another version (")
    assert cache.read_bytes() == content


def test_a_cache_is_never_written_through_a_link(tree, capsys):
    cache = cache_of(tree)
    cache.parent.mkdir(parents=True, exist_ok=True)
    (tree / "kept").write_text("mine")
    cache.symlink_to(tree / "kept")
    assert load_tree(tree).train_images.shape == (36, 3, 16, 16)
    assert "symbolic link" in capsys.readouterr().err
    assert (tree / "kept").read_text() == "mine"


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"])
def test_a_torn_or_altered_image_is_read_or_named(tmp_path, kind):
    content = encoded(kind)
    path = tmp_path / "damaged"
    rng = np.random.default_rng(1)
    with folders.pillow_warnings():
        for _ in range(40):
            torn = content[: rng.integers(len(content))]
            altered = bytearray(content)
            altered[rng.integers(min(len(content), 200))] ^= 1 << int(rng.integers(8))
            for damaged in (torn, bytes(altered)):
                path.write_bytes(damaged)
                try:
                    assert folders.decode_image(path, 8).shape == (3, 8, 8)
                except DataError as error:
                    assert str(path) in str(error)  # noqa: PT017 - it may be read or not


@pytest.mark.parametrize("share", np.linspace(0, 0.99, 12))
def test_a_cache_torn_or_altered_anywhere_is_made_again(tree, share):
    first = load_tree(tree)
    cache = cache_of(tree)
    content = cache.read_bytes()
    cache.unlink()
    at = int(share * len(content))
    for damaged in (content[:at], content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]):
        cache.write_bytes(damaged)
        assert load_tree(tree).fingerprint == first.fingerprint


def test_an_image_exchanged_for_another_is_decoded_again(tree):
    first = load_tree(tree)
    shutil.copy(tree / "train" / "dog" / "0012.png", tree / "train" / "cat" / "0000.png")
    assert load_tree(tree).fingerprint != first.fingerprint
