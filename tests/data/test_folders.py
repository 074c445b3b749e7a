"""folders.py: which files are read, as which pixels, and when the cache is used."""

import os
import shutil
import sys
import types

import numpy as np
import pytest
from conftest import patterned_images
from PIL import Image

from distill.config import DataConfig
from distill.data import folders
from distill.data.load import load_source
from distill.data.source import is_mapped
from distill.data.splits import make_dataset
from distill.errors import DataError


@pytest.fixture
def tree(tiny_imagefolder, tmp_path):
    """A copy of the folder to change, without a cache."""
    shutil.copytree(tiny_imagefolder, tmp_path / "tree", ignore=shutil.ignore_patterns(".*"))
    return tmp_path / "tree"


def load_tree(data_dir, image_size=None, progress=False):
    return load_source(DataConfig("imagefolder", data_dir=str(data_dir), image_size=image_size), progress)


def cache_of(data_dir):
    return folders.cache_file(DataConfig("imagefolder", data_dir=str(data_dir)))


def refused_tree(data_dir, image_size=None) -> str:
    with pytest.raises(DataError) as caught:
        load_tree(data_dir, image_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def decoded(monkeypatch):
    """The paths decoded since the list was last cleared."""
    paths = []
    decode = folders.decode_image
    monkeypatch.setattr(folders, "decode_image", lambda path, size: paths.append(path) or decode(path, size))
    return paths


def test_imagefolder_reads_a_tree(tree):
    for name in (
        "train/.hidden.png",
        "train/cat/.DS_Store",
        "train/cat/Thumbs.db",
        "test/eel/notes.txt",
        "train/README",
    ):
        (tree / name).write_text("no image")
    (tree / "train/.git").mkdir()
    source = load_tree(tree)
    assert (source.classes, source.flip, source.name) == (("cat", "dog", "eel"), True, "imagefolder")
    assert (source.train_images.shape, source.test_images.shape) == ((36, 3, 16, 16), (18, 3, 16, 16))
    np.testing.assert_array_equal(source.train_labels, np.repeat([0, 1, 2], 12))
    np.testing.assert_array_equal(source.test_labels, np.repeat([0, 1, 2], 6))
    np.testing.assert_array_equal(source.train_images, patterned_images(np.repeat([0, 1, 2], 12), 3, 16, 0))
    np.testing.assert_array_equal(source.test_images, patterned_images(np.repeat([0, 1, 2], 6), 3, 16, 1))


def test_decoding_in_threads_gives_the_same_images(tree, monkeypatch):
    expected = load_tree(tree)
    os.remove(cache_of(tree))
    large = folders._list_images

    def as_if_large(*arguments):
        return [file._replace(state=(10**6, 0, 0)) for file in large(*arguments)]

    monkeypatch.setattr(folders, "_list_images", as_if_large)
    assert load_tree(tree).fingerprint == expected.fingerprint


def test_a_class_may_be_missing_in_test_but_not_in_train(tree):
    shutil.rmtree(tree / "test" / "dog")
    source = load_tree(tree)
    np.testing.assert_array_equal(np.bincount(source.test_labels, minlength=3), [6, 0, 6])
    (tree / "test" / "fox").mkdir()
    assert f"{tree / 'test' / 'fox'} is a class without a folder" in refused_tree(tree)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_a_missing_folder_is_named(tree, missing):
    shutil.rmtree(tree / missing)
    assert f"no folder {tree / missing};" in refused_tree(tree)


@pytest.mark.parametrize("emptied", ["train/dog", "test/dog"])
def test_an_empty_class_is_named(tree, emptied):
    for file in (tree / emptied).iterdir():
        file.unlink()
    (tree / emptied / "notes.txt").write_text("no image")
    assert str(tree / emptied) in refused_tree(tree)


def test_a_part_without_classes_is_named(tree):
    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()
    assert f"{tree / 'test'} has no class folders" in refused_tree(tree)
    for name in ("dog", "eel"):
        shutil.rmtree(tree / "train" / name)
    assert f"{tree / 'train'} has 1 class folders; it needs two or more" in refused_tree(tree)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "link to nothing"])
def test_a_file_that_cannot_be_decoded_is_named(tree, damage):
    path = tree / "test" / "eel" / "damaged.png"
    if damage == "link to nothing":
        path.symlink_to(tree / "nothing")
    else:
        whole = (tree / "test" / "eel" / "0012.png").read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"no image", "empty": b""}[damage])
    assert str(path) in refused_tree(tree)
    assert not cache_of(tree).exists()


def test_sizes_that_differ_name_two_files_and_the_option(tree):
    Image.new("RGB", (20, 16)).save(tree / "test" / "cat" / "wide.bmp")
    message = refused_tree(tree)
    assert str(tree / "train" / "cat" / "0000.png") in message
    assert f"{tree / 'test' / 'cat' / 'wide.bmp'} differ in size (16x16 and 20x16)" in message
    assert "--image-size" in message
    assert load_tree(tree, image_size=8).train_images.shape == (36, 3, 8, 8)


def test_resizing_averages_over_the_pixels_it_drops(tmp_path):
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "checkers.png")
    small = folders.decode_image(tmp_path / "checkers.png", 8)
    assert small.shape == (3, 8, 8)
    assert np.abs(small.astype(int) - 127).max() <= 4


GREY16 = np.array([[0, 200], [32896, 65535]], np.uint16)
RGBA = np.array([[[200, 100, 50, 255], [9, 9, 9, 0]]], np.uint8)
BLENDED = np.array([[[200, 100, 50], [255, 255, 255]]])


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 9, 9, 9])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("grey.png", Image.fromarray(np.array([[0, 255]], np.uint8)), {}, [[[0] * 3, [255] * 3]]),
        ("bits.png", Image.fromarray(np.array([[False, True]])), {}, [[[0] * 3, [255] * 3]]),
        ("grey16.png", Image.fromarray(GREY16), {}, np.repeat([[[0], [1]], [[128], [255]]], 3, 2)),
        ("grey16.tiff", Image.fromarray(GREY16), {}, np.repeat([[[0], [1]], [[128], [255]]], 3, 2)),
        ("grey32.tiff", Image.fromarray(GREY16.astype(np.int32)), {}, np.repeat([[[0], [1]], [[128], [255]]], 3, 2)),
        ("palette.png", palette_image(), {}, [[[200, 100, 50], [9, 9, 9]]]),
        ("palette.gif", palette_image(), {}, [[[200, 100, 50], [9, 9, 9]]]),
        ("clear.png", palette_image(), {"transparency": 1}, BLENDED),
        ("clear2.png", palette_image(), {"transparency": b"\xff\x00"}, BLENDED),
        ("rgba.png", Image.fromarray(RGBA), {}, BLENDED),
        ("rgba.webp", Image.fromarray(RGBA), {"lossless": True}, BLENDED),
        ("la.png", Image.fromarray(np.array([[[7, 255], [9, 0]]], np.uint8), "LA"), {}, [[[7] * 3, [255] * 3]]),
        ("half.png", Image.fromarray(np.array([[[0, 0, 0, 51]]], np.uint8)), {}, [[[204] * 3]]),
        ("cmyk.tiff", Image.new("CMYK", (1, 1), (0, 255, 255, 0)), {}, [[[255, 0, 0]]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_becomes_rgb(tmp_path, name, image, options, expected):
    image.save(tmp_path / name, **options)
    pixels = folders.decode_image(tmp_path / name, None)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("pixels", [np.array([[70_000]], np.int32), np.array([[0.5]], np.float32)])
def test_pixels_without_a_known_range_are_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "odd.tiff")
    with pytest.raises(DataError, match=r"odd\.tiff cannot be read as an image"):
        folders.decode_image(tmp_path / "odd.tiff", None)


def test_the_second_load_decodes_nothing(tree, decoded):
    first = load_tree(tree)
    assert len(decoded) == 36 + 18
    decoded.clear()
    second = load_tree(tree)
    assert decoded == []
    assert second.fingerprint == first.fingerprint
    load_tree(tree, image_size=8)
    assert decoded != []
    assert load_tree(tree).train_images.shape[2:] == (16, 16)


@pytest.mark.parametrize("change", ["add", "touch", "remove", "swap", "replace", "rename a class"])
def test_a_changed_tree_is_decoded_again(tree, decoded, change):
    first = load_tree(tree)
    cats = tree / "train" / "cat"
    if change == "add":
        shutil.copy(cats / "0000.png", cats / "new.png")
    elif change == "touch":
        os.utime(cats / "0000.png", ns=(1, 1))
    elif change == "remove":
        (cats / "0000.png").unlink()
    elif change == "swap":
        (cats / "0000.png").rename(cats / "x.png")
        (cats / "0001.png").rename(cats / "0000.png")
        (cats / "x.png").rename(cats / "0001.png")
    elif change == "replace":  # by another image, with the size and the time of the first
        time = os.stat(cats / "0000.png").st_mtime_ns
        size = os.stat(cats / "0000.png").st_size
        content = (cats / "0001.png").read_bytes()
        (cats / "0000.png").write_bytes(content[:size] + b"\0" * (size - len(content)))
        os.utime(cats / "0000.png", ns=(time, time))
    else:
        (tree / "train" / "cat").rename(tree / "train" / "yak")
        (tree / "test" / "cat").rename(tree / "test" / "yak")
    decoded.clear()
    second = load_tree(tree)
    assert decoded != []
    assert (second.fingerprint == first.fingerprint) == (change == "touch")


def test_swapped_files_of_equal_size_and_time_are_decoded_again(tree):
    paths = [tree / "train" / "cat" / name for name in ("a.bmp", "b.bmp", "c.bmp")]
    for path, grey in zip(paths, (10, 20, 30), strict=True):
        Image.new("RGB", (16, 16), (grey,) * 3).save(path)
        os.utime(path, ns=(1, 1))
    before = load_tree(tree).train_images[12:15, 0, 0, 0].tolist()
    paths[0].rename(tree / "train" / "cat" / "d.bmp")
    after = load_tree(tree).train_images[12:15, 0, 0, 0].tolist()
    assert (before, after) == ([10, 20, 30], [20, 30, 10])


@pytest.mark.parametrize("kind", [".npy", ".json"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "flipped", "longer"])
def test_a_damaged_cache_is_made_again(tree, damage, kind):
    first = load_tree(tree)
    cache = cache_of(tree).with_suffix(kind)
    content = cache.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged = {"empty": b"", "truncated": content[:-100], "garbage": b"x" * 100, "flipped": flipped}
    cache.unlink()  # what is mapped must not change
    cache.write_bytes(damaged.get(damage, content + b"1"))
    assert load_tree(tree).fingerprint == first.fingerprint
    assert cache.read_bytes() == content


def test_a_write_that_is_cut_off_leaves_no_cache(tree, monkeypatch):
    def cut_off(path, size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "decode_image", cut_off)
        with pytest.raises(KeyboardInterrupt):
            load_tree(tree)
    assert not list(cache_of(tree).parent.glob(f"*{cache_of(tree).stem}*"))
    assert load_tree(tree).train_images.shape == (36, 3, 16, 16)


def test_a_cache_that_cannot_be_written_gives_one_note(tree, capsys):
    (cache_of(tree) / "in the way").mkdir(parents=True)
    source = load_tree(tree)
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line
    shutil.rmtree(cache_of(tree))
    assert load_tree(tree).fingerprint == source.fingerprint


def test_a_full_disk_leaves_the_images_in_memory(tree, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=54 * 3 * 16 * 16 - 1))
    assert not is_mapped(load_tree(tree).train_images)
    assert "cannot be written (No space left" in capsys.readouterr().err


def test_the_cache_is_mapped_and_where_the_user_wants_it(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(tree.rglob("*"))
    source = load_tree(tree)
    assert is_mapped(source.train_images)
    assert sorted(tree.rglob("*")) == before
    assert {file.suffix for file in (tmp_path / "cache" / "self-distiller").iterdir()} == {".npy", ".json"}
    beside = load_source(DataConfig("imagefolder", data_dir=str(tree), cache_dir=str(tree)))
    assert beside.fingerprint == source.fingerprint
    assert len(list(tree.glob("images-*"))) == 2


def test_class_folders_alone_are_split_by_the_seed(tree):
    whole = load_tree(tree)
    for folder in (tree / "train").iterdir():
        folder.rename(tree / folder.name)
    shutil.rmtree(tree / "train")
    shutil.rmtree(tree / "test")
    source = load_tree(tree)
    assert source.test_images is None
    np.testing.assert_array_equal(source.train_images, whole.train_images)
    config = DataConfig("imagefolder", data_dir=str(tree), test_size=6)
    one, other = (make_dataset(source, config, seed) for seed in (1, 2))
    assert (np.bincount(one.test.labels).tolist(), len(one.train)) == ([2, 2, 2], 30)
    assert not set(one.test.index) & set(one.train.index)
    assert set(one.test.index) != set(other.test.index)
    with pytest.raises(DataError, match="imagefolder has no test images: give --test-size N"):
        make_dataset(source, DataConfig("imagefolder", data_dir=str(tree)), 1)


def tiny_imagenet(tree):
    """The tree in the layout of Tiny ImageNet."""
    table = []
    (tree / "val" / "images").mkdir(parents=True)
    for folder in sorted((tree / "test").iterdir()):
        for file in sorted(folder.iterdir()):
            name = f"val_{len(table)}{file.suffix}"
            file.rename(tree / "val" / "images" / name)
            table.append(f"{name}\t{folder.name}\t0\t0\t15\t15\n")
    shutil.rmtree(tree / "test")
    (tree / "test" / "images").mkdir(parents=True)
    for folder in (tree / "train").iterdir():
        files = list(folder.iterdir())
        (folder / "images").mkdir()
        for file in files:
            file.rename(folder / "images" / file.name)
        (folder / f"{folder.name}_boxes.txt").write_text("0 0 15 15")
    (tree / "val" / "val_annotations.txt").write_text("".join(table))
    return tree / "val" / "val_annotations.txt"


def test_the_layout_of_tiny_imagenet_is_read(tree):
    whole = load_tree(tree)
    table = tiny_imagenet(tree)
    source = load_tree(tree)
    assert sorted(map(bytes, source.test_images)) == sorted(map(bytes, whole.test_images))
    np.testing.assert_array_equal(source.test_labels, whole.test_labels)
    np.testing.assert_array_equal(source.train_images, whole.train_images)
    for line, said in (("val_0.png\tbat\n", "line 19, is no image of a class"), ("gone.png\tcat\n", "cannot be read")):
        content = table.read_text()
        table.write_text(content + line)
        assert said in refused_tree(tree)
        table.write_text(content)


def test_progress_without_a_terminal_is_one_line(tree, capsys):
    load_tree(tree)
    assert capsys.readouterr().err == ""
    os.remove(cache_of(tree))
    load_tree(tree, progress=True)
    assert capsys.readouterr() == (f"reading 54 images from {tree}\n", "")


def test_progress_is_a_bar_on_a_terminal(tree, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    load_tree(tree, progress=True)
    assert "54/54" in capsys.readouterr().err
