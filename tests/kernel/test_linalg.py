"""kernel/linalg.py: factorisations against NumPy's, their errors, and the memory they require."""

import numpy as np
import pytest
from kernels import random_kernel

from distill.kernel import linalg


def test_product_is_a_matrix_product_in_any_memory_order():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3, 4))
    B = rng.standard_normal((4, 5))
    for a in (A, np.asfortranarray(A), np.repeat(A, 2, axis=1)[:, ::2]):
        for b in (B, np.asfortranarray(B), B[:, 1], B[:, :1], np.repeat(B, 2, axis=0)[::-2][::-1]):
            np.testing.assert_allclose(linalg.product(a, b), a @ b, rtol=1e-14)
            assert linalg.product(a, b).shape == (a @ b).shape


def test_decomposition_gives_the_kernel_back_and_keeps_its_input(K):
    before = K.copy()
    spectrum = linalg.decompose(K)
    np.testing.assert_array_equal(K, before)
    np.testing.assert_allclose(spectrum.V * spectrum.d @ spectrum.V.T, K, atol=1e-14)
    again = linalg.decompose(before, overwrite=True)
    np.testing.assert_allclose(again.d, spectrum.d, rtol=0, atol=1e-14 * spectrum.d[0])  # other memory is used


def test_eigenvalues_slightly_below_zero_are_set_to_zero():
    K = random_kernel(6, 20, rank=4)
    d = linalg.decompose(K).d
    assert (np.linalg.eigvalsh(K) < 0).any()
    assert d.min() == 0
    assert (np.diff(d) <= 0).all()


@pytest.mark.parametrize(("dtype", "noise"), [(np.float16, 1e-3), (np.float32, 1e-7), (np.float64, 1e-12)])
def test_asymmetry_and_negative_eigenvalues_of_the_dtypes_rounding_are_taken(dtype, noise):
    K = random_kernel(6, 20, rank=4)
    rounded = (K + noise * np.random.default_rng(0).uniform(-0.3, 0.3, K.shape)).astype(dtype)
    assert (rounded != rounded.T).any()
    taken = linalg.check_kernel(rounded)
    if dtype != np.float64:  # LAPACK reads one triangle, and at 1e-12 it does not matter which
        np.testing.assert_array_equal(taken.K, taken.K.T)
    np.testing.assert_allclose(linalg.decompose(rounded).d[:4], linalg.decompose(K).d[:4], atol=30 * noise)
    linalg.check_positive_semidefinite(taken)
    linalg.tridiagonalise(taken)
    far = K + 1000 * noise * np.triu(np.ones((20, 20)))
    with pytest.raises(linalg.NotSymmetricError):
        linalg.check_kernel(far.astype(dtype))


@pytest.mark.parametrize("n", [2, 3, 40])
def test_tridiagonal_form(n):
    K = random_kernel(n, n)
    rng = np.random.default_rng(n)
    before = K.copy()
    form = linalg.tridiagonalise(linalg.Dense(K))
    np.testing.assert_array_equal(K, before)
    T = np.diag(form.diagonal) + np.diag(form.off_diagonal, 1) + np.diag(form.off_diagonal, -1)
    Q = form.rotate(np.eye(n), back=True)
    np.testing.assert_allclose(Q @ T @ Q.T, K, atol=1e-14)
    np.testing.assert_allclose(Q.T @ Q, np.eye(n), atol=1e-14)
    assert form.mean_eigenvalue == pytest.approx(linalg.Dense(K).mean_eigenvalue)
    for b in (rng.standard_normal(n), rng.standard_normal((n, 3))):
        np.testing.assert_allclose(form.rotate(b), Q.T @ b, atol=1e-14)
        np.testing.assert_allclose(form.times(b), T @ b, atol=1e-14)
        np.testing.assert_allclose(form.solver(0.1, 0.5)(b), np.linalg.solve(0.5 * T + 0.1 * np.eye(n), b), rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e149])
def test_frobenius_norm(scale):
    K = random_kernel(8, 20)
    assert linalg.frobenius_norm(K * scale) == pytest.approx(np.linalg.norm(K) * scale, rel=1e-13)


def test_too_large_a_matrix_is_an_error_with_the_size(K, monkeypatch):
    monkeypatch.setattr(linalg, "available_memory", lambda: 3 * 8 * 11**2 - 1)
    with pytest.raises(linalg.MatrixTooLargeError, match=r"n = 11 needs 3 arrays of 11 x 11"):
        linalg.decompose(K)
    linalg.decompose(K.copy(), overwrite=True)
    monkeypatch.undo()
    with pytest.raises(linalg.MatrixTooLargeError, match=r"23283\.1 GiB"):
        linalg.require_memory(1_250_000, arrays=2)
    room = linalg.available_memory()
    assert room is None or room > 2**20


@pytest.mark.parametrize("overwrite", [False, True])
def test_more_rows_than_32_bits_can_count(monkeypatch, overwrite):
    """By a lower limit: the real one needs 40 GB of memory."""
    A = np.random.default_rng(0).standard_normal((30, 20))
    K = A @ A.T
    expected = linalg.decompose(K)
    monkeypatch.setattr(linalg, "LARGEST_OF_32_BITS", 29)
    config = {"openblas configuration": "OpenBLAS USE64BITINT"}
    monkeypatch.setattr(linalg.np, "show_config", lambda mode: config)
    monkeypatch.setattr(linalg.scipy.linalg, "eigh", lambda *_, **__: pytest.fail("32 bits"))
    spectrum = linalg.decompose(K.copy(), overwrite=overwrite)
    np.testing.assert_allclose(spectrum.d, expected.d, atol=1e-12)
    np.testing.assert_allclose(spectrum.V * spectrum.d @ spectrum.V.T, K, atol=1e-12)
    monkeypatch.setattr(linalg, "available_memory", lambda: 8 * 30**2 * (4 if overwrite else 5) - 1)
    with pytest.raises(linalg.MatrixTooLargeError, match="n = 30 needs"):
        linalg.decompose(K.copy(), overwrite=overwrite)
    config.clear()
    before = K.copy()
    with pytest.raises(linalg.MatrixTooLargeError, match=r"n = 30: LAPACK with 32-bit .* 29 rows at most; krr.lanczos"):
        linalg.decompose(K, overwrite=overwrite)
    np.testing.assert_array_equal(K, before)


def test_the_workspace_of_the_limit_is_the_last_that_32_bits_count():
    for n, counts in ((linalg.LARGEST_OF_32_BITS, True), (linalg.LARGEST_OF_32_BITS + 1, False)):
        assert (1 + 6 * n + 2 * n**2 < 2**31) == counts


def test_the_norm_of_more_entries_than_32_bits_can_count(monkeypatch):
    K = np.random.default_rng(0).standard_normal((30, 30))
    monkeypatch.setattr(linalg, "MOST_ENTRIES", 899)
    monkeypatch.setattr(linalg.blas, "ddot", lambda *_: pytest.fail("32 bits"))
    assert linalg.frobenius_norm(K) == pytest.approx(np.linalg.norm(K), rel=1e-14)
