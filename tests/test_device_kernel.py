"""A kernel matrix on a torch device against the same in NumPy."""

import numpy as np
import pytest
import torch

from distill import krr
from distill.device_kernel import DeviceKernel, rbf

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
rng = np.random.default_rng(0)
X = rng.standard_normal((101, 5))
X_NEW = rng.standard_normal((37, 5))
Y = rng.standard_normal((101, 2))


def linear(A, B):
    return A @ B.T


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", [0, 20_000, None])
@pytest.mark.parametrize("X_new", [None, X_NEW])
@pytest.mark.parametrize(("kernel", "same"), [(rbf(0.3), krr.rbf(0.3)), (linear, linear)])
def test_products_are_those_of_tiles_in_numpy(device, memory, X_new, kernel, same):
    K = DeviceKernel(kernel, X, X_new, device=device, tile=20, memory=memory)
    expected = krr.KernelTiles(same, X, X_new).matmat(Y)
    for _ in range(2):  # the second time from memory, as far as it goes
        product = K.matmat(Y)
        assert product.dtype == np.float64
        assert product == pytest.approx(expected, abs=1e-12)
    assert K.matvec(Y[:, 0]) == pytest.approx(expected[:, 0], abs=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_a_risk_map_is_that_of_the_eigendecomposition(device):
    grid = ([0.2, 1], [0.5, 5], [1, 3, np.inf])
    basis = krr.lanczos(DeviceKernel(rbf(0.1), X, device=device, tile=40), Y, *grid, tolerance=1e-9)
    found = basis.risk_map(DeviceKernel(rbf(0.1), X, X_NEW, device=device), np.ones((37, 2)), *grid)
    K, K_new = krr.rbf(0.1)(X, X), krr.rbf(0.1)(X_NEW, X)
    assert found == pytest.approx(krr.risk_map(K, Y, K_new, np.ones((37, 2)), *grid), rel=1e-7)


def test_float32_inputs_are_computed_in_float64():
    K = DeviceKernel(rbf(0.3), X.astype(np.float32), device="cpu")
    expected = krr.rbf(0.3)(*2 * [X.astype(np.float32).astype(float)]) @ Y
    assert K.matmat(Y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": X * np.nan}, "X has NaN"),
        ({"X_new": X_NEW[:, 1:]}, "X_new has 4 columns"),
        ({"tile": 0}, "tile must be"),
        ({"device": "mps"}, "no float64"),
        ({"kernel": lambda A, B: torch.ones(len(A))}, r"the kernel of 101 and 101 rows is torch.Size\(\[101\]\)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DeviceKernel(**{"kernel": rbf(0.3), "X": X, "device": "cpu"} | change).matmat(Y)
