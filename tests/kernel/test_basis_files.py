"""A block Lanczos run that is interrupted, and continues from its files."""

import errno
import os

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator
from sklearn.metrics.pairwise import rbf_kernel

from distill.errors import DataError
from distill.kernel import basis_files
from distill.kernel.lanczos import BlockLanczos, NotReachedError, lanczos

rng = np.random.default_rng(0)
X = rng.random((300, 3))
K = rbf_kernel(X, gamma=3)
Y = np.sin(6 * X[:, :1]) + 0.3 * rng.standard_normal((300, 2))
GRID = (0.5, 1e-3, [1, 2])


def same(resumed):
    """Whether a basis is that of an uninterrupted run."""
    straight = BlockLanczos(K, Y)
    while straight.passes < resumed.passes:
        straight.extend()
    mine, theirs = resumed.spectrum(), straight.spectrum()
    B = 1 / (mine.d + 0.1)
    return np.allclose(mine.d, theirs.d, atol=1e-10) and np.allclose(
        mine.V @ (B[:, None] * (mine.V.T @ Y)), theirs.V @ (B[:, None] * (theirs.V.T @ Y)), atol=1e-9
    )


def extended(folder, passes, **options):
    basis = BlockLanczos(K, Y, checkpoint=folder, **options)
    while basis.passes < passes:
        basis.extend()
    return basis


def test_an_interruption_loses_one_pass_at_most(tmp_path):
    left = 4

    def product(block):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return K @ block

    interrupted = LinearOperator(K.shape, matvec=product, matmat=product, dtype=K.dtype)
    with pytest.raises(KeyboardInterrupt):
        lanczos(interrupted, Y, *GRID, tolerance=1e-8, checkpoint=tmp_path)
    assert BlockLanczos(K, Y, checkpoint=tmp_path).passes == 4
    resumed = lanczos(K, Y, *GRID, tolerance=1e-8, checkpoint=str(tmp_path))
    assert resumed.passes > 4
    assert same(resumed)


def test_a_larger_basis_continues_from_a_smaller_one(tmp_path):
    with pytest.raises(NotReachedError):
        lanczos(K, Y, *GRID, tolerance=1e-8, max_basis=70, checkpoint=tmp_path)
    assert BlockLanczos(K, Y, max_basis=22, checkpoint=tmp_path).size == 66  # what is there is not thrown away
    resumed = lanczos(K, Y, *GRID, tolerance=1e-8, checkpoint=tmp_path)
    assert resumed.size > 70
    assert same(resumed)
    assert (tmp_path / "basis.f64").stat().st_size == 8 * 300 * resumed.size


@pytest.mark.parametrize("whole", [True, False])
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path, monkeypatch, whole):
    basis = extended(tmp_path, 2)

    def full(path, size, data):
        with open(path, "ab") as file:
            file.write(bytes(data)[: None if whole else 1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(basis_files, "append", full)
        with pytest.raises(OSError, match="No space left"):
            basis.extend()
    assert same(extended(tmp_path, 3))  # by another process
    basis = extended(tmp_path, 3)
    basis.extend()
    assert same(BlockLanczos(K, Y, checkpoint=tmp_path))


def test_a_basis_continues_after_its_disk_was_full(tmp_path, monkeypatch):
    basis = extended(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(basis_files, "append", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            basis.extend()
    basis.extend()
    (tmp_path / "basis.f64").unlink()  # it is written again as a whole
    basis.extend()
    resumed = BlockLanczos(K, Y, checkpoint=tmp_path)
    assert resumed.passes == 5
    assert same(resumed)


def test_vectors_that_no_state_counts_are_cut_off(tmp_path):
    (tmp_path / "basis.f64").write_bytes(b"junk" * 1000)
    extended(tmp_path, 2)
    with open(tmp_path / "basis.f64", "ab") as file:
        file.write(os.urandom(12345))
    assert same(extended(tmp_path, 3))
    assert (tmp_path / "basis.f64").stat().st_size == 8 * 300 * 66


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda folder: None, {"y": Y + 1}, "another problem"),
        (lambda folder: None, {"y": Y[:, 0]}, "another problem"),
        (lambda folder: None, {"seed": 1}, "another problem"),
        (lambda folder: None, {"probes": 21}, "another problem"),
        (lambda folder: None, {"K": 2 * K}, "another kernel matrix"),
        (lambda folder: None, {"K": rbf_kernel(X, gamma=3.00001)}, "another kernel matrix"),
        (lambda folder: flip(folder / "basis.f64"), {}, "basis.f64 is damaged"),
        (lambda folder: flip(folder / "state.npz"), {}, "state.npz is damaged"),
        (lambda folder: os.truncate(folder / "basis.f64", 1000), {}, "basis.f64 is shorter"),
        (lambda folder: os.truncate(folder / "state.npz", 1000), {}, "state.npz is damaged"),
        (lambda folder: (folder / "state.npz").write_bytes(b""), {}, "state.npz is damaged"),
        (lambda folder: (folder / "state.npz").write_bytes(b"x" * 99), {}, "state.npz is damaged"),
        (lambda folder: np.savez(folder / "state.npz", T=np.eye(3)), {}, "another problem"),
    ],
)
def test_a_folder_of_another_problem_is_refused(tmp_path, change, options, message):
    extended(tmp_path, 1)
    change(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=message):
        BlockLanczos(**{"K": K, "y": Y, "checkpoint": tmp_path} | options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_processes_do_not_share_a_folder(tmp_path):
    def second(size, error):
        with pytest.raises(DataError, match="another process uses the checkpoint"):
            lanczos(K, Y, *GRID, checkpoint=tmp_path)

    lanczos(K, Y, *GRID, checkpoint=tmp_path, report=second)
    lanczos(K, Y, *GRID, checkpoint=tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        lanczos(K, Y, *GRID, checkpoint=tmp_path / "file" / "folder")


def test_a_basis_that_is_a_link_is_not_written_through(tmp_path):
    extended(tmp_path, 1)
    (tmp_path / "basis.f64").rename(tmp_path / "outside")
    (tmp_path / "basis.f64").symlink_to("outside")
    before = (tmp_path / "outside").read_bytes()
    with pytest.raises(OSError, match="Is a symbolic link"):
        extended(tmp_path, 2)
    assert (tmp_path / "outside").read_bytes() == before
