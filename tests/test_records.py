"""JSON and zip files of a run: what is written is read back, and anything else is one line that names the file."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from distill.errors import ConfigError
from distill.records import digest_of_arrays, digest_of_parts, map_array, read_arrays, read_json, write_json

CONTENT = {"x": 0.1 + 0.2, "smallest": 5e-324, "text": "naïve \ud800", "none": None, "list": [1, {"b": 2, "a": True}]}


def test_what_is_written_is_read_back_to_the_bit(tmp_path):
    write_json(tmp_path / "t.json", CONTENT)
    content = read_json(tmp_path / "t.json")
    assert len(content.pop("sha256")) == 64
    assert content == CONTENT


def test_the_order_of_keys_and_the_layout_do_not_matter(tmp_path):
    write_json(tmp_path / "t.json", CONTENT)
    content = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert read_json(tmp_path / "t.json") == content


def test_a_file_of_an_older_version_without_a_sha256_is_read(tmp_path):
    (tmp_path / "t.json").write_text('{"x": 1}')
    assert read_json(tmp_path / "t.json") == {"x": 1}


def test_a_missing_file_is_the_callers_business(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "t.json")


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_and_every_torn_end_is_noticed(tmp_path, bit):
    write_json(tmp_path / "t.json", {"alpha": 0.25, "arm": "a"})
    whole = (tmp_path / "t.json").read_bytes()
    for at in range(len(whole) - 1):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]):
            (tmp_path / "t.json").write_bytes(content)
            try:
                found = read_json(tmp_path / "t.json")
            except ConfigError:
                continue
            # Between tokens one white space may become another; a broken name of the SHA-256 makes an old file of it.
            assert {name: found.get(name) for name in ("alpha", "arm")} == {"alpha": 0.25, "arm": "a"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"3", b'{"x": NaN}', b'{"x": Infinity}', b'{"x": 1e999}', b'{"x": \xff}'),
        *(b'{"x": ' + b"9" * 5001 + b"}", b"[" * 100_000, b'{"x": ' * 100_000, b'{"sha256": 3}', b'{"sha256": null}'),
        *('{"x": 1}'.encode("utf-16"), b"\xef\xbb\xbf{}", b"\x00" * 100),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_anything_else_is_one_line_that_names_the_file(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"t\.json is damaged \(") as error:
        read_json(tmp_path / "t.json")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ConfigError, match=rf"{name} cannot be read"):
            read_json(tmp_path / name)


def test_a_huge_file_is_not_read_whole(tmp_path):
    with open(tmp_path / "t.json", "wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(ConfigError, match="it is too large"):
        read_json(tmp_path / "t.json")


# ---- zip files


def test_the_digest_is_of_the_arrays_not_of_their_packing(tmp_path):
    arrays = {"a": np.arange(5), "b": np.zeros(3)}
    np.savez(tmp_path / "one.npz", **arrays)
    np.savez(tmp_path / "two.npz", **dict(reversed(arrays.items())))
    assert (tmp_path / "one.npz").read_bytes() != (tmp_path / "two.npz").read_bytes()
    assert digest_of_parts(tmp_path / "one.npz") == digest_of_parts(tmp_path / "two.npz")
    np.savez(tmp_path / "two.npz", a=np.arange(5), b=np.ones(3))
    assert digest_of_parts(tmp_path / "one.npz") != digest_of_parts(tmp_path / "two.npz")


def test_a_zip_that_would_expand_is_refused_before_it_does(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("a.npy", bytes(10**7))
    with pytest.raises(ConfigError, match=r"bomb\.npz is damaged \(it is compressed\)"):
        digest_of_parts(tmp_path / "bomb.npz")


def test_a_torn_or_changed_zip_is_refused(tmp_path):
    content = io.BytesIO()
    np.savez(content, a=np.arange(50))
    whole = content.getvalue()
    expected = digest_of_parts(io.BytesIO(whole))
    for at in range(len(whole)):
        for changed in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            (tmp_path / "t.npz").write_bytes(changed)
            try:
                assert digest_of_parts(tmp_path / "t.npz") == expected  # a date or a flag that nobody reads
            except ConfigError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either is right


def test_arrays_torn_or_changed_anywhere_are_refused_or_right(tmp_path):
    np.savez(tmp_path / "whole.npz", a=np.arange(50), b=np.array("text"))
    whole = (tmp_path / "whole.npz").read_bytes()
    for at in range(len(whole)):
        for changed in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            (tmp_path / "t.npz").write_bytes(changed)
            try:
                found = read_arrays(tmp_path / "t.npz", ("a",))
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either is right
            else:
                assert not found or found["a"].tolist() == list(range(50))


def npy(shape: str, content: bytes, kind: str = "<f8") -> bytes:
    """An NPY file with any header and content."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy("(1000000000,)", bytes(80)), "."),
        (npy("(10000000000000000000000,)", bytes(80)), "."),
        (npy("(4611686018427387904, 4)", bytes(80)), "."),
        (npy("(2,)", bytes(80)), "not as long as its array"),
        (npy("(1000000000000,)", b"", "|S0"), "not as long as its array"),
        (npy("(1,)", pickle.dumps([print]), "|O"), "Object arrays"),
        (npy("[" * 5000, b""), "."),
        (b"text", "magic"),
    ],
)
def test_an_array_that_claims_too_much_or_holds_objects_is_refused(tmp_path, content, said):
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as parts:
        parts.writestr("a.npy", content)
    with pytest.raises(ValueError, match=said):
        read_arrays(tmp_path / "t.npz")
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"^a\.npy: [^\n]+$"):
        map_array(tmp_path / "a.npy")


@pytest.mark.parametrize("values", [np.arange(6).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.array("text")])
def test_an_array_is_mapped(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    found = map_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, values)
    assert not found.flags.writeable


def test_a_pipe_is_not_mapped(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(OSError, match="pipe"):
        map_array(tmp_path / "a.npy")


def test_arrays_that_would_fill_the_memory_are_refused_before_they_do(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10**6))
    assert read_arrays(tmp_path / "bomb.npz")["a"].shape == (10**6,)
    monkeypatch.setattr("distill.records.available_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"its arrays need 0\.0 GB of memory"):
        read_arrays(tmp_path / "bomb.npz")


@pytest.mark.parametrize("name", ["plain.npy", "pipe", "folder", "none", "encrypted.npz", "packed.npz"])
def test_other_kinds_of_files_are_refused(tmp_path, name):
    np.save(tmp_path / "plain.npy", np.arange(3))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "whole.npz", a=np.arange(3))
    whole = (tmp_path / "whole.npz").read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for damaged, at, value in (("encrypted.npz", 8, 1), ("packed.npz", 10, 99)):
        changed = bytearray(whole)
        changed[directory + at] = changed[at - 2] = value
        (tmp_path / damaged).write_bytes(changed)
    with pytest.raises((ValueError, OSError)):
        read_arrays(tmp_path / name)


def test_the_digest_of_arrays_is_of_their_values_shapes_and_order():
    X, y = np.arange(6.0).reshape(3, 2), np.arange(3.0)
    assert digest_of_arrays([X, y]) == digest_of_arrays([np.asfortranarray(X), y])
    others = [[X, y], [y, X], [X + 1, y], [X, y + 1], [X.T.copy(), y], [X.reshape(2, 3), y]]
    assert len({digest_of_arrays(arrays) for arrays in others} | {digest_of_arrays([X, y], "text")}) == 7
