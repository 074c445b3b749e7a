"""Products by tiles against products with the whole kernel matrix."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics.pairwise import rbf_kernel

from distill.kernel import tiles
from distill.kernel.tiles import KernelTiles, rbf

rng = np.random.default_rng(0)
X = rng.standard_normal((101, 5))
X_NEW = rng.standard_normal((37, 5))
BLOCK = rng.standard_normal((101, 4))


@pytest.mark.parametrize("memory", [0, 20_000, 1e9])
@pytest.mark.parametrize("X_new", [None, X_NEW])
def test_products_are_those_of_the_whole_matrix(memory, X_new):
    K = KernelTiles(rbf_kernel, X, X_new, tile=20, memory=memory)
    expected = rbf_kernel(X if X_new is None else X_new, X) @ BLOCK
    for _ in range(2):  # the second time from memory, as far as it goes
        assert K.matmat(BLOCK) == pytest.approx(expected, abs=1e-13)
    assert K.matvec(BLOCK[:, 0]) == pytest.approx(expected[:, 0], abs=1e-13)


def test_kept_tiles_are_computed_once_and_a_symmetric_matrix_by_half():
    calls = []

    def kernel(A, B):
        calls.append((len(A), len(B)))
        return rbf_kernel(A, B)

    K = KernelTiles(kernel, X, tile=30, memory=1e9)
    K.matmat(BLOCK)
    K.matmat(BLOCK)
    assert len(calls) == 4 * 5 / 2


def test_float32_tiles_are_as_accurate_as_float32():
    K = KernelTiles(rbf_kernel, X, tile=30, dtype=np.float32)
    product = K.matmat(BLOCK)
    assert product.dtype == np.float64
    error = np.abs(product - rbf_kernel(X) @ BLOCK).max()
    assert 0 < error < 1e-5


@pytest.mark.parametrize(("dtype", "error"), [(np.float64, 1e-14), (np.float32, 1e-5)])
def test_rbf_is_scikit_learns(dtype, error):
    A = X.astype(dtype)
    K = rbf(0.3)(A, X_NEW.astype(dtype))
    assert K.dtype == dtype
    assert pytest.approx(rbf_kernel(X, X_NEW, gamma=0.3), abs=error) == K
    assert (np.diag(rbf(0.3)(A, A)) <= 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.ones(3)}, "X must have a row for each point"),
        ({"X": np.ones((0, 3))}, "X must have a row"),
        ({"X": [["a"]]}, "X must hold real numbers"),
        ({"X": np.where(X[3, 1] == X, np.nan, X)}, "X has NaN"),
        ({"X_new": np.full((4, 5), np.inf)}, "X_new has NaN or infinite"),
        ({"X_new": np.ones((4, 3))}, "X_new has 3 columns, but X has 5"),
        ({"tile": 0}, "tile must be a whole number"),
        ({"tile": 1.5}, "tile must be a whole number"),
        ({"dtype": np.float16}, "dtype must be float32 or float64"),
        ({"memory": -1}, "memory must be at least 0"),
        ({"memory": np.nan}, "memory must be at least 0"),
    ],
)
def test_refuses_what_is_no_kernel_matrix(change, message):
    with pytest.raises(ValueError, match=message):
        KernelTiles(**{"kernel": rbf_kernel, "X": X} | change)


def test_a_kernel_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"the kernel of 101 and 101 rows is \(101,\)"):
        KernelTiles(lambda A, B: np.ones(len(A)), X).matmat(BLOCK)


def test_sparse_rows_are_those_of_the_dense_matrix():
    sparse = scipy.sparse.csc_array(np.where(X > 0, X, 0))
    expected = rbf_kernel(sparse.toarray()) @ BLOCK
    assert KernelTiles(rbf_kernel, sparse, tile=30).matmat(BLOCK) == pytest.approx(expected, abs=1e-13)


def test_large_matrices_are_computed_in_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(tiles, "MOST_ENTRIES", 2000)
    shapes = []

    def kernel(A, B):
        shapes.append((len(A), len(B)))
        assert len(A) < len(B)  # no product of an array with its own transpose
        return rbf_kernel(A, B)

    assert tiles.matrix(kernel, X, X) == pytest.approx(rbf_kernel(X), abs=1e-14)
    assert sum(height for height, _ in shapes) == 101
    assert max(height * width for height, width in shapes) <= 2000
    assert pytest.approx(rbf_kernel(X, gamma=0.3), abs=1e-14) == rbf(0.3)(X, X)
