"""cifar.py: the original format, subsets of it, damage to it, and the download."""

import hashlib
import os
import pickle
import shutil
import socket
import struct
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
from conftest import CLASSES, patterned_images, write_cifar_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config import DataConfig
from distill.data import cifar
from distill.data.load import load_source
from distill.errors import DataError

BATCHES = "cifar-10-batches-py"


@pytest.fixture
def cifar10(tiny_cifar10, tmp_path):
    """A copy to damage: the folder with the batches."""
    shutil.copytree(tiny_cifar10, tmp_path / "data")
    return tmp_path / "data" / BATCHES


def load_cifar(folder, dataset="cifar10"):
    return load_source(DataConfig(dataset, data_dir=str(folder.parent)))


def refused(folder, dataset="cifar10") -> str:
    with pytest.raises(DataError) as caught:
        load_cifar(folder, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cifar10_subset_is_read_with_one_note(tiny_cifar10, capsys):
    source = load_cifar(tiny_cifar10 / BATCHES)
    labels = np.random.default_rng(1).permutation(np.arange(40) % 10)  # as the fixture draws data_batch_2
    np.testing.assert_array_equal(source.train_labels[40:80], labels)
    np.testing.assert_array_equal(source.train_images[40:80], patterned_images(labels, 10, 32, 1))
    assert (source.train_images.shape, source.test_images.shape) == ((200, 3, 32, 32), (60, 3, 32, 32))
    assert (source.classes, source.flip) == (CLASSES, True)
    [line] = capsys.readouterr().err.splitlines()
    assert "not hold the original files: 200 training and 60 test images" in line


def test_files_with_the_published_checksums_need_no_note(cifar10, capsys, monkeypatch):
    from torchvision.datasets import CIFAR10

    def with_md5(listed):
        return [(file, hashlib.md5((folder / file).read_bytes()).hexdigest()) for file, _ in listed]

    folder = cifar10
    monkeypatch.setattr(CIFAR10, "train_list", with_md5(CIFAR10.train_list))
    monkeypatch.setattr(CIFAR10, "test_list", with_md5(CIFAR10.test_list))
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": with_md5([("batches.meta", "")])[0][1]})
    load_cifar(folder)
    assert capsys.readouterr().err == ""
    (folder / "data_batch_5").unlink()
    with pytest.raises(DataError, match="has no data_batch_5"):  # a fifth of the original would be missing
        load_cifar(folder)


def test_one_training_batch_is_enough(cifar10, capsys):
    for i in range(2, 6):
        (cifar10 / f"data_batch_{i}").unlink()
    assert load_cifar(cifar10).train_labels.shape == (40,)
    assert "40 training and 60 test images" in capsys.readouterr().err


def test_cifar100_is_read_by_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    labels = np.arange(100)
    for part in ("train", "test"):
        write_cifar_batch(folder / part, patterned_images(labels, 100, 32, 0), labels, "fine_labels")
    names = [f"class {c}" for c in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["x"] * 20}))
    source = load_cifar(folder, "cifar100")
    assert source.classes == tuple(names)
    np.testing.assert_array_equal(source.test_labels, labels)


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and NumPy 1 pickled the original files: byte strings, and 0 and 1 for dtype's booleans."""

    def string(b: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(b)) + b

    def integer(i: int) -> bytes:
        return b"J" + struct.pack("<i", i)

    dtype = (
        b"cnumpy\ndtype\n("
        + string(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + string(b"|")
        + b"NNN"
        + 2 * integer(-1)
        + b"K\x00tb"
    )
    shape = b"(" + integer(len(images)) + integer(3072) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    array += b"(K\x01" + shape + dtype + b"\x89" + string(images.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + listed + b"u."


def test_a_batch_pickled_by_python_2_is_read_without_a_warning(cifar10):
    images = patterned_images(np.arange(10), 10, 32, 9)
    (cifar10 / "test_batch").write_bytes(python2_batch(images, list(range(10))))
    source = load_cifar(cifar10)
    np.testing.assert_array_equal(source.test_images, images)
    np.testing.assert_array_equal(source.test_labels, np.arange(10))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(cifar10, protocol):
    batch = {"data": np.zeros((4, 3072), np.uint8), "labels": np.array([0, 1, 2, 3])}
    (cifar10 / "test_batch").write_bytes(pickle.dumps(batch, protocol))
    np.testing.assert_array_equal(load_cifar(cifar10).test_labels, [0, 1, 2, 3])


def test_a_damaged_original_is_refused(cifar10):
    write_cifar_batch(cifar10 / "data_batch_3", np.zeros((10_000, 3, 32, 32), np.uint8), np.zeros(10_000, int))
    message = refused(cifar10)
    assert str(cifar10 / "data_batch_3") in message
    assert f"delete {cifar10}" in message


def batch(n=4, pixels=3072, dtype=np.uint8, labels=(0, 1, 2, 3), **more) -> bytes:
    return pickle.dumps({"data": np.zeros((n, pixels), dtype), "labels": list(labels)} | more)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        batch()[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({"labels": [0]}),
        pickle.dumps({"data": np.zeros((4, 3072), np.uint8)}),
        batch(pixels=3071),
        batch(dtype=np.float32),
        batch(n=5),
        batch(n=0, labels=()),
        batch(labels=(0, 1, 2, 10)),
        batch(labels=(0, 1, 2, -1)),
        batch(labels=(0, 1, 2, 0.5)),
        batch(labels=([0], [1, 2], 2, 3)),
        batch(labels=(0, 1, 2, 2**70)),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_4", "test_batch"])
def test_a_broken_batch_is_named(cifar10, name, content):
    (cifar10 / name).write_bytes(content)
    assert str(cifar10 / name) in refused(cifar10)


@given(cut=st.integers(0, 10**6), flipped=st.integers(0, 255))
@settings(max_examples=60)
def test_any_damage_to_a_pickle_is_a_data_error(tmp_path_factory, cut, flipped):
    content = bytearray(batch(labels=range(4)))
    header = len(content) - 4 * 3072
    content[cut % header if flipped % 2 else -1 - cut % header] ^= flipped or 1
    path = tmp_path_factory.mktemp("pickle") / "test_batch"
    path.write_bytes(content)
    try:
        cifar._read_batch(path, "", "labels", 10)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 - a flip in the pixels raises nothing, and need not


def test_a_pickle_that_calls_something_is_refused_and_not_run(cifar10, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (cifar10 / "test_batch").write_bytes(pickle.dumps({"data": Attack()}))
    assert f"it calls {os.name}.mkdir" in refused(cifar10)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy.f2py.__main__\nscalar\n.",
        b"cnumpy.random\nndarray\n.",
        b"cnumpy.core.multiarray.evil\nscalar\n.",
        b"c_codecs\ndecode\n.",
        b"}\x8d\x00\x00\x00\x00\x10\x00\x00\x00",  # a text of 64 GB
        b"}r\xff\xff\xff\xff.",  # a memo of 2**32 objects
        b"}(U\x04datacnumpy\nndarray\n(J\xff\xff\xff\x7ftRu.",  # an array of 2 GB
        b"}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btRu.",
        b"(" * 10**6,
        b"}(U\x04data)" + b"2\x86" * 40 + b"K\x01u.",  # pairs that hold one another, as a value
        b"})" + b"2\x86" * 40 + b"K\x01s.",  # and as a key, by SETITEM, SETITEMS and DICT
        b"}()" + b"2\x86" * 40 + b"K\x01u.",
        b"()" + b"2\x86" * 40 + b"K\x01d.",
        b"\x8f(K\x01\x90.",  # a set
        pickle.dumps({"data": np.zeros((4, 3072), object), "labels": [0, 1, 2, 3]}),
    ],
    ids=range(15),
)
def test_a_hostile_pickle_is_refused_without_importing_or_allocating(cifar10, content):
    modules = set(sys.modules)
    (cifar10 / "test_batch").write_bytes(content)
    tracemalloc.start()
    message = refused(cifar10)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(cifar10 / "test_batch") in message
    assert most < 100e6
    assert not {name for name in set(sys.modules) - modules if "f2py" in name or name.startswith("numpy.random")}


def test_labels_that_hold_one_another_are_refused_at_once(cifar10):
    label = [0] * 10
    for _ in range(40):
        label = [label] * 10
    content = pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": label})
    (cifar10 / "test_batch").write_bytes(content)
    assert "labels" in refused(cifar10)


def test_big_endian_labels_are_read(cifar10):
    content = {"data": np.zeros((4, 3072), np.uint8), "labels": np.arange(4, dtype=">i4")}
    (cifar10 / "test_batch").write_bytes(pickle.dumps(content))
    np.testing.assert_array_equal(load_cifar(cifar10).test_labels, range(4))


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_fifo_and_a_file_of_10_gb_are_refused_at_once(cifar10, name):
    (cifar10 / name).unlink()
    os.mkfifo(cifar10 / name)
    assert str(cifar10 / name) in refused(cifar10)
    (cifar10 / name).unlink()
    with open(cifar10 / name, "wb") as file:
        file.truncate(10**10)
    assert "too large" in refused(cifar10)


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_missing_file_is_named(cifar10, name):
    (cifar10 / name).unlink()
    message = refused(cifar10)
    assert name in message
    assert "delete the folder" in message


def test_missing_training_batches_are_named(cifar10):
    for i in range(1, 6):
        (cifar10 / f"data_batch_{i}").unlink()
    assert "data_batch_1" in refused(cifar10)


@pytest.mark.parametrize(
    "content",
    [b"garbage", *(pickle.dumps(c) for c in ({}, {"label_names": [1, 2]}, {"label_names": ["a", "\ud800"]}))],
)
def test_broken_class_names_are_refused(cifar10, content):
    (cifar10 / "batches.meta").write_bytes(content)
    assert str(cifar10 / "batches.meta") in refused(cifar10)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "cifar-10-batches-py").touch()
    with pytest.raises(DataError, match="cifar-10-batches-py is no folder; remove it"):
        load_source(DataConfig(data_dir=str(tmp_path)))


# ------------------------------------------------------------------------------------------------------------ download


@pytest.fixture
def mirror(tiny_cifar10_archive, http_server, monkeypatch):
    """The environment names a mirror of the tiny archive."""
    path, md5 = tiny_cifar10_archive
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", f"{http_server(path.parent)}/{path.name}")
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", md5)
    return path


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def nothing_unfinished(data_dir) -> bool:
    return not [p.name for p in data_dir.iterdir() if p.name.startswith(".unfinished")]


def test_download_from_a_mirror_into_a_new_folder(mirror, tiny_cifar10, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "data" / BATCHES
    timeout = socket.getdefaulttimeout()
    assert load_cifar(folder).fingerprint == load_cifar(tiny_cifar10 / BATCHES).fingerprint
    assert socket.getdefaulttimeout() == timeout
    assert sorted(p.name for p in folder.parent.iterdir()) == [BATCHES, mirror.name]
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", f"http://127.0.0.1:{unused_port()}/x")
    load_cifar(folder)  # from here on without the network
    shutil.rmtree(folder)
    load_cifar(folder)  # and without the folder, from the archive


@pytest.mark.parametrize("trouble", ["no server", "no file", "wrong checksum", "no address"])
def test_a_failed_download_says_what_to_do(trouble, mirror, tmp_path, monkeypatch):
    if trouble == "wrong checksum":
        monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", "0" * 32)
    else:
        url = os.environ["SELF_DISTILLER_CIFAR_URL"]
        bad = {"no server": f"http://127.0.0.1:{unused_port()}/x.tar.gz", "no file": url + "x", "no address": "nowhere"}
        monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", bad[trouble])
    message = refused(tmp_path / "data" / BATCHES)
    assert os.environ["SELF_DISTILLER_CIFAR_URL"] in message
    assert f"put cifar-10-python.tar.gz into {tmp_path / 'data'} by hand" in message
    assert "--dataset digits" in message
    assert ("MD5" in message) == (trouble == "wrong checksum")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_manually_downloaded_archive_is_used(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_URL", f"http://127.0.0.1:{unused_port()}/x")
    shutil.copy(mirror, tmp_path)
    assert len(load_cifar(tmp_path / BATCHES).train_labels) == 200


def test_a_damaged_archive_is_named_and_left_alone(mirror, tmp_path):
    (tmp_path / mirror.name).write_bytes(mirror.read_bytes()[:-10])
    message = refused(tmp_path / BATCHES)
    assert str(tmp_path / mirror.name) in message
    assert "delete it" in message
    assert (tmp_path / mirror.name).exists()


def test_an_archive_of_something_else_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"not an archive")
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", hashlib.md5(b"not an archive").hexdigest())
    assert f"cannot unpack {archive}" in refused(tmp_path / BATCHES)
    assert nothing_unfinished(tmp_path)


def test_an_archive_that_writes_outside_its_folder_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("../../outside"))
    monkeypatch.setenv("SELF_DISTILLER_CIFAR_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert f"cannot unpack {archive}" in refused(archive.parent / BATCHES)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", archive.name]


def test_interrupted_unpacking_leaves_no_folder_that_looks_complete(mirror, tmp_path, monkeypatch):
    whole = tarfile.TarFile.extractall

    def half(archive, folder, **options):
        whole(archive, folder, **options)
        for name in ("data_batch_5", "test_batch"):
            os.remove(os.path.join(folder, BATCHES, name))
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extractall", half)
    with pytest.raises(KeyboardInterrupt):
        load_cifar(tmp_path / BATCHES)
    assert not (tmp_path / BATCHES).exists()
    assert nothing_unfinished(tmp_path)
    monkeypatch.setattr(tarfile.TarFile, "extractall", whole)
    (tmp_path / ".unfinished-killed" / BATCHES).mkdir(parents=True)  # what kill -9 leaves
    assert len(load_cifar(tmp_path / BATCHES).train_labels) == 200


def test_a_data_folder_that_cannot_be_written_is_named(mirror, tmp_path):
    (tmp_path / "file").write_text("")
    assert f"cannot write into {tmp_path / 'file' / 'data'}" in refused(tmp_path / "file" / "data" / BATCHES)
