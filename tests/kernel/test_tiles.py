"""Products by tiles against products with the whole kernel matrix."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

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
