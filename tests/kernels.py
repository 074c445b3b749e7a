"""Small kernel problems for several test files, and the chain by second routes."""

import math

import mpmath
import numpy as np
from hypothesis import strategies as st

GOLDEN = {  # losses of fits 1 to 6 and the limit on the toy data, by alpha
    0.0: [0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251, 0.49505],
    0.35: [0.16477, 0.15424, 0.15089, 0.14983, 0.14954, 0.14948, 0.14959],
    0.6: [0.16477, 0.15767, 0.15578, 0.15521, 0.15503, 0.15497, 0.15494],
}
STEPS = [1, 2, 3, 4, 5, 6, math.inf]

ridges = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)


def rbf(x, z, gamma=80.0):
    """The RBF kernel matrix (q, n) of points x (q,) and z (n,)."""
    return np.exp(-gamma * (np.asarray(x)[:, None] - z) ** 2)


def random_kernel(seed, n, rank=None):
    """A kernel matrix with eigenvalues from 1 down to 1e-3, or of a lower rank."""
    rng = np.random.default_rng(seed)
    V = np.linalg.qr(rng.standard_normal((n, n)))[0]
    d = np.geomspace(1, 1e-3, n)
    d[n if rank is None else rank :] = 0
    K = V * d @ V.T
    return (K + K.T) / 2


def exact_chain(K, y, lams, alphas, n_steps):
    """Dual coefficients and fitted values (n_steps, n) of each fit, by direct solves with 60 digits."""
    n = len(K)
    with mpmath.workdps(60):
        M = mpmath.matrix(K.tolist())
        target = mpmath.matrix(y.tolist())
        y0 = target.copy()
        duals = []
        fits = []
        for step in range(1, n_steps + 1):
            lam = mpmath.mpf(lams[min(step, len(lams)) - 1])
            c = mpmath.lu_solve(M + lam * mpmath.eye(n), target)
            duals.append([float(v) for v in c])
            fits.append([float(v) for v in M * c])
            alpha = mpmath.mpf(alphas[min(step, len(alphas)) - 1])
            target = alpha * y0 + (1 - alpha) * (M * c)
    return np.array(duals), np.array(fits)
