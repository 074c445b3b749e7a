"""distill.krr, weights and linalg: every formula by a second route and at its limits, and the laws."""

import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distill.kernel import krr, linalg
from distill.kernel.toy.data import sinusoid, toy

GOLDEN = {  # losses of fits 1 to 6 and the limit
    0.0: [0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251, 0.49505],
    0.35: [0.16477, 0.15424, 0.15089, 0.14983, 0.14954, 0.14948, 0.14959],
    0.6: [0.16477, 0.15767, 0.15578, 0.15521, 0.15503, 0.15497, 0.15494],
}
STEPS = [1, 2, 3, 4, 5, 6, math.inf]


def rbf(x, z, gamma=80.0):
    return np.exp(-gamma * (np.asarray(x)[:, None] - z) ** 2)


@pytest.fixture(scope="module")
def data():
    return toy()


@pytest.fixture(scope="module")
def K(data):
    return rbf(data.x, data.x)


@pytest.fixture(scope="module")
def K_new(data):
    return rbf(data.x_truth, data.x)


@pytest.fixture(scope="module")
def spectrum(K):
    return krr.decompose(K)


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
        M, target = mpmath.matrix(K.tolist()), mpmath.matrix(y.tolist())
        y0, duals, fits = target.copy(), [], []
        for step in range(1, n_steps + 1):
            lam = mpmath.mpf(lams[min(step, len(lams)) - 1])
            c = mpmath.lu_solve(M + lam * mpmath.eye(n), target)
            duals.append([float(v) for v in c])
            fits.append([float(v) for v in M * c])
            alpha = mpmath.mpf(alphas[min(step, len(alphas)) - 1])
            target = alpha * y0 + (1 - alpha) * (M * c)
    return np.array(duals), np.array(fits)


# ---- golden numbers


@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
@pytest.mark.parametrize("alpha", GOLDEN)
def test_golden_losses(data, K, K_new, alpha, solver):
    chain = krr.chain(K, data.y, 0.2, alpha, STEPS, solver=solver)
    losses = ((krr.predict(K_new, chain.coefficients) - data.truth) ** 2).mean(axis=1)
    np.testing.assert_array_equal(losses.round(5), GOLDEN[alpha])
    assert chain.solver == solver


def test_golden_diagonal(spectrum):
    expected = [0.7821, 0.7710, 0.7516, 0.7226, 0.6822, 0.6289, 0.5617, 0.4825, 0.3976, 0.3190, 0.2624]
    np.testing.assert_array_equal(krr.diagonals(spectrum.d, 0.2, 0.35, 6)[0].round(4), expected)


def test_golden_best_weights(data, spectrum, K_new):
    residuals = data.truth - krr.predict(K_new, krr.power_coefficients(spectrum, data.y, 0.2, 6))
    alphas, risks = krr.greedy_alphas(residuals)
    np.testing.assert_allclose(alphas, [-0.62184, 0.33036, 0.33476, 0.33577, 0.33604], atol=5e-6)
    np.testing.assert_allclose(risks[:2], [0.16477, 0.148340], atol=5e-6)
    joint = [krr.joint_weights(residuals[:k])[1] for k in (2, 3, 4)]
    np.testing.assert_allclose(joint, [0.148340, 0.147647, 0.143363], atol=5e-7)


# ---- the chain by direct solves in extended precision


@pytest.mark.parametrize("alphas", [[0.0], [0.35], [1.0], [-0.5], [1.4], [0.2, -0.7, 0.9]])
@pytest.mark.parametrize("lam", [1e-12, 1e-3, 0.2, 50.0, 1e12])
def test_chain_equals_direct_solves(lam, alphas):
    K, y = random_kernel(1, 7), np.random.default_rng(2).standard_normal(7)
    spectrum = krr.decompose(K)
    duals, fits = exact_chain(K, y, [lam], alphas, 5)
    condition = (spectrum.d[0] + lam) / (spectrum.d[-1] + lam)
    # alpha outside [0, 1] makes the chain's coefficients grow, and rounding with them
    tolerance = 50 * linalg.EPS * condition
    B = krr.diagonals(spectrum.d, lam, alphas, range(1, 6))
    fitted = krr.fitted_values(spectrum, y, B)
    spectral = krr.dual_coefficients(spectrum, y, lam, alphas, range(1, 6))
    cholesky = krr.chain(K, y, lam, alphas, range(1, 6), solver="cholesky").coefficients
    for computed, expected in ((fitted, fits), (spectral, duals), (cholesky, duals)):
        scale = np.linalg.norm(expected, axis=1).max() * (2 if min(alphas) >= 0 and max(alphas) <= 1 else 50)
        np.testing.assert_allclose(computed, expected, rtol=0, atol=tolerance * scale)


def test_recursion_with_lam_and_alpha_by_step():
    K, y = random_kernel(3, 6), np.random.default_rng(4).standard_normal(6)
    lams, alphas = [0.3, 0.01, 2.0, 0.1], [0.5, -0.2, 0.8]
    spectrum = krr.decompose(K)
    B = krr.diagonals_by_recursion(spectrum.d, lams, alphas, 6)
    _, fits = exact_chain(K, y, lams, alphas, 6)
    np.testing.assert_allclose(krr.fitted_values(spectrum, y, B), fits, atol=1e-13)


def test_closed_form_at_late_steps_against_extended_precision():
    d = np.array([1.0, 0.3, 1e-3, 1e-9, 0.0])
    for lam, alpha, step in [(0.2, 0.35, 10**6), (1e-9, 0.0, 1000), (1e-7, 1e-9, 10**6), (0.5, 1.3, 10**15)]:
        with mpmath.workdps(60):
            expected = []
            for value in map(mpmath.mpf, d.tolist()):
                A = value / (value + mpmath.mpf(lam))
                q, limit = (1 - mpmath.mpf(alpha)) * A, alpha * value / (alpha * value + mpmath.mpf(lam))
                expected.append(float(limit + q ** (step - 1) * (A - limit)))
        np.testing.assert_allclose(krr.diagonals(d, lam, alpha, step)[0], expected, rtol=1e-12, atol=1e-300)


def test_product_is_a_matrix_product_in_any_memory_order():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    for a in (A, np.asfortranarray(A), np.repeat(A, 2, axis=1)[:, ::2]):
        for b in (B, np.asfortranarray(B), B[:, 1], B[:, :1], np.repeat(B, 2, axis=0)[::-2][::-1]):
            np.testing.assert_allclose(linalg.product(a, b), a @ b, rtol=1e-14)
            assert linalg.product(a, b).shape == (a @ b).shape


def test_many_targets_at_once(K, K_new, data):
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((11, 3))
    T = rng.standard_normal((101, 3))
    for solver in ("eigh", "cholesky"):
        together = krr.chain(K, Y, 0.1, [0.2, 0.6], [1, 3, 5], solver=solver).coefficients
        apart = [krr.chain(K, Y[:, j], 0.1, [0.2, 0.6], [1, 3, 5], solver=solver).coefficients for j in range(3)]
        np.testing.assert_allclose(together, np.stack(apart, axis=-1), atol=1e-13)
        predicted = krr.predict(K_new, together)
        assert predicted.shape == (3, 101, 3)
        np.testing.assert_allclose(predicted[1, :, 2], K_new @ apart[2][1], atol=1e-13)
        risk = krr.risk_map(K, Y, K_new, T, [0.3], [0.1, 1], [2, math.inf], solver=solver)
        each = [krr.risk_map(K, Y[:, j], K_new, T[:, j], [0.3], [0.1, 1], [2, math.inf]) for j in range(3)]
        np.testing.assert_allclose(risk, np.mean(each, axis=0), rtol=1e-12)
        for few in (K_new, K_new[:2]):  # more and fewer points than columns
            t = T[: len(few)]
            by_tridiagonal = krr.risk_map(K, Y, few, t, [0.3], [0.1, 1], [2, math.inf], solver="tridiagonal")
            by_eigh = krr.risk_map(K, Y, few, t, [0.3], [0.1, 1], [2, math.inf], solver="eigh")
            np.testing.assert_allclose(by_tridiagonal, by_eigh, rtol=1e-12)


# ---- limits


def test_limit_is_an_ordinary_fit_with_lam_over_alpha(spectrum, K, data):
    for lam, alpha in [(0.2, 0.35), (1e-3, 1.5), (5.0, -0.1)]:
        expected = scipy.linalg.solve(K + lam / alpha * np.eye(11), data.y, assume_a="sym")
        for solver in ("eigh", "cholesky"):
            c = krr.chain(K, data.y, lam, alpha, math.inf, solver=solver).coefficients[0]
            np.testing.assert_allclose(c, expected, rtol=1e-10)


def test_alpha_one_is_constant_and_alpha_zero_vanishes(spectrum):
    d, lam = spectrum.d, 0.2
    B = krr.diagonals(d, lam, 1.0, [1, 2, 100, 10**9, math.inf])
    np.testing.assert_allclose(B, np.tile(d / (d + lam), (5, 1)), rtol=1e-14)
    assert not krr.limit_diagonal(d, lam, 0.0).any()
    assert krr.diagonals(d, lam, 0.0, 10**6).max() < 1e-300
    # the closed form for alpha = 0 is a power
    np.testing.assert_allclose(krr.diagonals(d, lam, 0.0, 7)[0], (d / (d + lam)) ** 7, rtol=1e-13)


def test_extreme_ridges(spectrum, K, data):
    interpolant = krr.dual_coefficients(spectrum, data.y, 0.0, 0.35, [1, 2, 50, math.inf])
    np.testing.assert_allclose(K @ interpolant[0], data.y, atol=1e-12)
    assert (interpolant == interpolant[0]).all()
    by_cholesky = krr.chain(K, data.y, 0.0, -3.0, [1, 4, math.inf], solver="cholesky").coefficients
    np.testing.assert_allclose(by_cholesky, interpolant[:3], rtol=1e-9)
    huge = krr.dual_coefficients(spectrum, data.y, 1e12, 0.35, [1, math.inf])
    np.testing.assert_allclose(huge[0], data.y / 1e12, rtol=1e-10)
    np.testing.assert_allclose(huge[1], 0.35 * data.y / 1e12, rtol=1e-10)


def test_convergence_is_within_its_bound_and_no_better_than_linear(spectrum, data):
    for lam, alpha in [(0.2, 0.35), (0.2, 0.0), (0.01, 0.6), (1.0, -0.1), (0.3, 1.7)]:
        steps = range(1, 30)
        fits = krr.fitted_values(spectrum, data.y, krr.diagonals(spectrum.d, lam, alpha, [*steps, math.inf]))
        distance = np.linalg.norm(fits[:-1] - fits[-1], axis=1)
        bound = krr.convergence_bound(spectrum.d, lam, alpha, steps, distance[0])
        assert (distance <= bound * (1 + 1e-9) + 1e-14).all()
        assert distance[20] == 0 or bound[20] < 1e6 * distance[20]
        rate = krr.convergence_rate(spectrum.d, lam, alpha)
        assert rate == pytest.approx(abs(1 - alpha) * spectrum.d[0] / (spectrum.d[0] + lam))


def test_divergence_is_named(spectrum, K, data):
    for alpha in (-0.2, 2.2):
        with pytest.raises(krr.DivergentChainError, match="diverges"):
            krr.limit_diagonal(spectrum.d, 0.2, alpha)
        for solver in ("eigh", "cholesky", "auto"):
            with pytest.raises(krr.DivergentChainError, match="diverges"):
                krr.chain(K, data.y, 0.2, alpha, math.inf, solver=solver)
        with pytest.raises(krr.DivergentChainError):
            krr.convergence_bound(spectrum.d, 0.2, alpha, [3])
    # just inside the bound there is a limit
    edge = 1 - (spectrum.d[0] + 0.2) / spectrum.d[0]
    krr.limit_diagonal(spectrum.d, 0.2, edge + 1e-6)
    with pytest.raises(krr.DivergentChainError, match="1e308"):
        krr.diagonals(spectrum.d, 0.2, -1.0, 10**6)
    with pytest.raises(krr.DivergentChainError, match="1e308"):
        krr.chain(K, data.y, 0.2, -5.0, 2000, solver="cholesky")


def test_one_point():
    K, y = np.array([[2.0]]), np.array([3.0])
    for solver in ("eigh", "cholesky"):
        chain = krr.chain(K, y, 1.0, 0.5, [1, 2, math.inf], solver=solver)
        # A = 2/3: B = 2/3, 2/3 (1/2 + 1/3) = 5/9, and (1/2 * 2)/(1/2 * 2 + 1) = 1/2 in the limit; c = B y / d
        np.testing.assert_allclose(chain.coefficients[:, 0], [1.0, 5 / 6, 3 / 4])


def test_a_kernel_of_zeros_predicts_zero():
    for solver in ("eigh", "cholesky"):
        chain = krr.chain(np.zeros((3, 3)), np.ones(3), 0.5, 0.4, [1, 2], solver=solver)
        np.testing.assert_allclose(chain.coefficients, [[2.0] * 3, [0.8] * 3])


def test_repeated_points(data):
    x, y = np.repeat(data.x, 2), np.repeat(data.y, 2)
    K = rbf(x, x)
    twice = krr.chain(K, y, 0.2, 0.35, STEPS)
    # two copies of each point count as one point with half the ridge
    once = krr.chain(rbf(data.x, data.x), data.y, 0.1, 0.35, STEPS)
    new = np.linspace(0, 1, 17)
    np.testing.assert_allclose(
        krr.predict(rbf(new, x), twice.coefficients),
        krr.predict(rbf(new, data.x), once.coefficients),
        atol=1e-12,
    )
    for solver in ("eigh", "cholesky", "auto"):
        with pytest.raises(linalg.SingularKernelError):
            krr.chain(K, y, 0.0, 0.35, [1], solver=solver)


@pytest.mark.parametrize("gamma", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_badly_conditioned_kernels_to_what_the_condition_allows(data, gamma, solver):
    lam = 1e-10
    K = rbf(data.x, data.x, gamma)
    K_new = rbf(np.linspace(0, 1, 9), data.x, gamma)
    chain = krr.chain(K, data.y, lam, 0.35, [3], solver=solver)
    # The reference starts from the same float64 kernel matrices: what is tested is the solving.
    duals, _ = exact_chain(K, data.y, [lam], [0.35], 3)
    expected = K_new @ duals[2]
    scale = np.abs(K_new) @ np.abs(duals[2])
    assert chain.condition > krr.UNTRUSTED
    assert (np.abs(krr.predict(K_new, chain.coefficients)[0] - expected) <= linalg.EPS * chain.condition * scale).all()


# ---- what a chain does to the spectrum


def test_sparsification_ratios(spectrum):
    B = krr.diagonals(spectrum.d, 0.2, 0.35, [3])[0]
    R = krr.sparsification_ratios(B)
    np.testing.assert_allclose(R, [B[k] / B[k + 1] for k in range(10)], rtol=1e-15)
    assert np.array_equal(krr.sparsification_ratios([2.0, 1.0, 0.0, 0.0]), [2.0, math.inf, math.nan], equal_nan=True)
    limit = krr.sparsification_ratios(krr.limit_diagonal(spectrum.d, 0.2, 0.35))
    late = krr.sparsification_ratios(krr.diagonals(spectrum.d, 0.2, 0.35, 300)[0])
    np.testing.assert_allclose(late, limit, rtol=1e-12)


def test_degrees_of_freedom_and_gcv_are_those_of_the_smoother(spectrum, K, data):
    S = K @ np.linalg.solve(K + 0.2 * np.eye(11), np.eye(11))
    S2 = S @ (0.35 * np.eye(11) + 0.65 * S)
    B = krr.diagonals(spectrum.d, 0.2, 0.35, [1, 2])
    np.testing.assert_allclose(krr.degrees_of_freedom(B), [np.trace(S), np.trace(S2)], rtol=1e-12)
    expected = [np.mean((data.y - M @ data.y) ** 2) / (1 - np.trace(M) / 11) ** 2 for M in (S, S2)]
    np.testing.assert_allclose(krr.generalised_cross_validation(spectrum, data.y, B), expected, rtol=1e-12)
    both = np.stack([data.y, 2 * data.y], axis=1)
    np.testing.assert_allclose(
        krr.generalised_cross_validation(spectrum, both, B), 2.5 * np.array(expected), rtol=1e-12
    )
    assert krr.generalised_cross_validation(spectrum, data.y, np.ones((1, 11)))[0] == math.inf


# ---- best weights


def test_best_alpha_where_it_does_not_matter():
    f = np.array([1.0, 2.0])
    assert math.isnan(krr.best_alpha(f, f * (1 + 1e-16), [0.0, 1.0]))
    assert math.isnan(krr.best_alpha([0.0], [0.0], [1.0]))
    assert krr.best_alpha(f, f * (1 + 1e-9), f) == pytest.approx(1.0)
    R = np.ones((3, 4))
    np.testing.assert_array_equal(krr.greedy_alphas(R)[0], [1, 1])
    np.testing.assert_allclose(krr.joint_weights(R)[0], [1, 0, 0])


def test_greedy_weights_are_those_of_chains_on_a_grid(data, K_new, spectrum):
    residuals = data.truth - krr.predict(K_new, krr.power_coefficients(spectrum, data.y, 0.2, 4))
    alphas, risks = krr.greedy_alphas(residuals)
    for i in range(3):
        grid = alphas[i] + np.linspace(-0.5, 0.5, 41)
        losses = []
        for alpha in grid:
            c = krr.dual_coefficients(spectrum, data.y, 0.2, [*alphas[:i], alpha], i + 2)
            losses.append(np.mean((krr.predict(K_new, c)[0] - data.truth) ** 2))
        assert np.argmin(losses) == 20
        assert losses[20] == pytest.approx(risks[i + 1], rel=1e-10)


def test_joint_weights_by_the_normal_equations_in_extended_precision():
    R = np.random.default_rng(5).standard_normal((4, 30))
    with mpmath.workdps(50):
        M = mpmath.matrix(R.tolist())
        c = mpmath.lu_solve(M * M.T, mpmath.ones(4, 1))
        expected = [float(v / sum(c)) for v in c]
    weights, risk = krr.joint_weights(R)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert risk == pytest.approx(np.mean((weights @ R) ** 2))


def test_joint_weights_are_a_chain_with_that_risk(data, K_new, spectrum):
    residuals = data.truth - krr.predict(K_new, krr.power_coefficients(spectrum, data.y, 0.2, 3))
    weights, risk = krr.joint_weights(residuals)
    c = krr.dual_coefficients(spectrum, data.y, 0.2, krr.weights_to_alphas(weights), 3)
    assert np.mean((krr.predict(K_new, c)[0] - data.truth) ** 2) == pytest.approx(risk, rel=1e-9)


def test_gcv_residuals_are_those_of_the_smoother(spectrum, K, data):
    S = K @ np.linalg.solve(K + 0.2 * np.eye(11), np.eye(11))
    for j, residual in enumerate(krr.gcv_residuals(spectrum, data.y, 0.2, 3), start=1):
        M = np.linalg.matrix_power(S, j)
        expected = (data.y - M @ data.y) / (1 - np.trace(M) / 11)
        np.testing.assert_allclose(spectrum.V @ residual, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="lam > 0"):
        krr.gcv_residuals(spectrum, data.y, 0.0, 2)


def test_weights_without_held_out_data_come_near_the_best():
    rng = np.random.default_rng(0)
    x, new = rng.uniform(size=1000), np.linspace(0, 1, 101)
    y = sinusoid(x) + 0.5 * rng.standard_normal(1000)
    spectrum, K_new = krr.decompose(rbf(x, x)), rbf(new, x)
    by_gcv, _ = krr.greedy_alphas(krr.gcv_residuals(spectrum, y, 20.0, 2))
    powers = krr.predict(K_new, krr.power_coefficients(spectrum, y, 20.0, 2))
    _, (teacher, best) = krr.greedy_alphas(sinusoid(new) - powers)
    risk = np.mean((krr.alphas_to_weights(by_gcv) @ powers - sinusoid(new)) ** 2)
    assert risk < teacher / 2
    assert risk < 1.1 * best


# ---- laws


numbers = st.floats(-1.5, 2.5)
ridges = st.floats(-6, 6).map(lambda e: 10.0**e)
spectra = st.lists(st.floats(0, 10), min_size=1, max_size=8).map(lambda d: np.sort(d)[::-1])


@given(spectra, ridges, numbers, st.integers(1, 40))
def test_closed_form_equals_recursion(d, lam, alpha, n_steps):
    closed = krr.diagonals(d, lam, alpha, range(1, n_steps + 1))
    recursion = krr.diagonals_by_recursion(d, lam, alpha, n_steps)
    growth = max(1, abs(1 - alpha)) ** n_steps  # of a rounding error along the recursion
    np.testing.assert_allclose(closed, recursion, rtol=1e-12, atol=1e-13 * growth)


@given(spectra, ridges, st.lists(numbers, min_size=1, max_size=5), st.integers(1, 12))
def test_schedule_equals_recursion(d, lam, alphas, n_steps):
    closed = krr.diagonals(d, lam, alphas, range(1, n_steps + 1))
    recursion = krr.diagonals_by_recursion(d, lam, alphas, n_steps)
    growth = max(1, *(abs(1 - alpha) for alpha in alphas)) ** n_steps
    np.testing.assert_allclose(closed, recursion, rtol=1e-12, atol=1e-13 * growth)


@given(spectra, ridges, st.floats(0.01, 1))
def test_limit_is_the_diagonal_of_an_ordinary_fit(d, lam, alpha):
    least = 1e-300  # nearer to 0, subnormal numbers have fewer digits
    np.testing.assert_allclose(krr.limit_diagonal(d, lam, alpha), d / (d + lam / alpha), rtol=1e-12, atol=least)
    late = krr.diagonals(d, lam, alpha, 10**14)[0]
    np.testing.assert_allclose(late, krr.limit_diagonal(d, lam, alpha), rtol=1e-12, atol=least)


@given(spectra, ridges, st.integers(1, 10**9))
def test_alpha_one_never_changes(d, lam, step):
    np.testing.assert_allclose(krr.diagonals(d, lam, 1.0, step)[0], krr.shrinkage(d, lam), rtol=1e-14)


@given(spectra, ridges, st.integers(1, 100))
def test_alpha_zero_decreases_to_zero_and_sparsifies(d, lam, step):
    B = krr.diagonals(d, lam, 0.0, [step, step + 1, math.inf])
    assert (B[1] <= B[0]).all()
    assert not B[2].any()
    assume(B[1].min() > 1e-290)
    R = krr.sparsification_ratios(B[:2])
    assert (R[1] >= R[0] * (1 - 1e-12)).all()


@given(st.lists(st.floats(-3, 0.9) | st.floats(1.1, 3), min_size=1, max_size=6))
def test_stick_breaking_there_and_back(alphas):
    weights = krr.alphas_to_weights(alphas)
    assert len(weights) == len(alphas) + 1
    assert weights.sum() == pytest.approx(1, abs=1e-12 * np.abs(weights).max())
    # a stick broken to nearly nothing keeps few digits, in proportion
    shortest = np.abs(np.cumprod(1 - np.array(alphas[::-1]))).min() / np.abs(weights).max()
    np.testing.assert_allclose(krr.weights_to_alphas(weights), alphas, rtol=1e-12, atol=1e-13 / shortest)
    np.testing.assert_allclose(
        krr.alphas_to_weights(krr.weights_to_alphas(weights)),
        weights,
        atol=1e-12 * np.abs(weights).max() / shortest,
    )


def test_stick_breaking_of_a_used_up_stick():
    np.testing.assert_array_equal(krr.alphas_to_weights([0.3, 1.0]), [1, 0, 0])
    np.testing.assert_array_equal(krr.weights_to_alphas([1.0, 0.0, 0.0]), [1, 1])
    with pytest.raises(ValueError, match="sum to 1"):
        krr.weights_to_alphas([0.5, 0.6])
    with pytest.raises(ValueError, match="no chain"):
        krr.weights_to_alphas([1.0, 1.0, -1.0])


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_best_weights_beat_every_grid_value(seed, k):
    R = np.random.default_rng(seed).standard_normal((k, 8)) + 1
    alphas, risks = krr.greedy_alphas(R)
    for i in range(k - 1):
        for alpha in np.linspace(-3, 3, 61):
            weights = krr.alphas_to_weights([*alphas[:i], alpha])
            assert risks[i + 1] <= np.mean((weights @ R[: i + 2]) ** 2) * (1 + 1e-9)
    _, joint = krr.joint_weights(R)
    assert joint <= risks.min() * (1 + 1e-9)


@settings(max_examples=30)
@given(st.integers(0, 10**6), ridges, st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=3))
def test_maps_by_every_solver_are_those_of_single_chains(seed, lam, alphas):
    rng = np.random.default_rng(seed)
    K, y = random_kernel(seed, 9), rng.standard_normal(9)
    K_new, target = rng.standard_normal((5, 9)), rng.standard_normal(5)
    steps = [1, 3, 7]
    expected = np.empty((len(alphas), 3))
    for i, alpha in enumerate(alphas):
        c = krr.chain(K, y, lam, alpha, steps, solver="eigh").coefficients
        expected[i] = ((krr.predict(K_new, c) - target) ** 2).mean(axis=1)
    for solver in ("eigh", "cholesky", "tridiagonal"):
        computed = krr.risk_map(K, y, K_new, target, alphas, lam, steps, solver=solver)[:, 0]
        np.testing.assert_allclose(computed, expected, rtol=1e-7)


def test_map_with_late_steps_limits_and_divergence(K, K_new, data, spectrum):
    alphas, lams, steps = [-1.0, 0.0, 0.35, 2.5], [0.05, 0.2], [1, 4, 10**6, math.inf]
    risk = krr.risk_map(spectrum, data.y, K_new, data.truth, alphas, lams, steps)
    assert risk.shape == (4, 2, 4)
    for i, alpha in enumerate(alphas):
        for j, lam in enumerate(lams):
            for s, step in enumerate(steps):
                if alpha in (-1.0, 2.5) and step > 4:
                    assert risk[i, j, s] == math.inf
                    continue
                c = krr.dual_coefficients(spectrum, data.y, lam, alpha, step)
                expected = np.mean((krr.predict(K_new, c)[0] - data.truth) ** 2)
                assert risk[i, j, s] == pytest.approx(expected, rel=1e-10)
    for solver in ("cholesky", "tridiagonal"):
        limits = krr.risk_map(K, data.y, K_new, data.truth, [0, 0.35], [0.2], [2, math.inf], solver=solver)
        np.testing.assert_allclose(limits[:, 0, 1], [GOLDEN[0.0][-1], GOLDEN[0.35][-1]], atol=5e-6)


# ---- solvers and refusals


def test_auto_takes_the_cheaper_solver():
    assert krr.choose_solver(2000, 1, 10) == "cholesky"
    assert krr.choose_solver(2000, 10, 100) == "cholesky"
    assert krr.choose_solver(2000, 50, 1000) == "eigh"
    assert krr.choose_solver(2000, 1, 10**6) == "eigh"
    K, y = random_kernel(0, 300), np.ones(300)
    assert krr.chain(K, y, 0.1, 0.3, [1, 2, 3]).solver == "cholesky"
    assert krr.chain(K, y, 0.1, 0.3, [10**6]).solver == "eigh"
    assert krr.chain(K, y, 0.1, -0.01, [math.inf]).solver == "eigh"  # whether it exists takes an eigenvalue
    low = random_kernel(0, 300, rank=5)
    assert krr.chain(low, y, 1e-18, 0.3, [2]).solver == "eigh"  # lam is lost in K's rounding
    with pytest.raises(linalg.SingularKernelError, match="eigh"):
        krr.chain(low, y, 1e-18, 0.3, [2], solver="cholesky")


def test_auto_takes_the_cheapest_solver_for_a_map(monkeypatch):
    assert krr.choose_map_solver(2000, 10, 100, 100) == "tridiagonal"
    assert krr.choose_map_solver(2000, 2, 10, 10) == "cholesky"
    assert krr.choose_map_solver(10_000, 10, 100, 100) == "cholesky"
    assert krr.choose_map_solver(11, 10, 100, 100) == "eigh"  # eigenvectors of 11 points cost nothing
    rng = np.random.default_rng(0)
    K, y, K_new, target = random_kernel(0, 300), rng.standard_normal(300), rng.standard_normal((5, 300)), np.ones(5)
    expected = krr.risk_map(K, y, K_new, target, [0.3], [0.1, 1, 2], [1, 2], solver="eigh")
    with monkeypatch.context() as patch:
        patch.setattr(krr, "decompose", lambda *_, **__: pytest.fail("eigh was taken"))
        np.testing.assert_allclose(krr.risk_map(K, y, K_new, target, [0.3], [0.1, 1, 2], [1, 2]), expected, rtol=1e-9)
    low, lams = random_kernel(0, 300, rank=5), [1e-18, 1e-3, 0.1]  # the first is lost in K's rounding
    expected = krr.risk_map(low, y, K_new, target, [0.3], lams, [1, 2], solver="eigh")
    np.testing.assert_array_equal(krr.risk_map(low, y, K_new, target, [0.3], lams, [1, 2]), expected)
    with pytest.raises(linalg.SingularKernelError, match="eigh"):
        krr.risk_map(low, y, K_new, target, [0.3], lams, [1, 2], solver="tridiagonal")


@pytest.mark.parametrize("n", [2, 3, 40])
def test_tridiagonal_form(n):
    K, rng = random_kernel(n, n), np.random.default_rng(n)
    before = K.copy()
    form = linalg.tridiagonalise(K)
    np.testing.assert_array_equal(K, before)
    T = np.diag(form.diagonal) + np.diag(form.beside, 1) + np.diag(form.beside, -1)
    Q = form.rotate_back(np.eye(n))
    np.testing.assert_allclose(Q @ T @ Q.T, K, atol=1e-14)
    np.testing.assert_allclose(Q.T @ Q, np.eye(n), atol=1e-14)
    assert form.mean_eigenvalue == pytest.approx(linalg.Dense(K).mean_eigenvalue)
    for b in (rng.standard_normal(n), rng.standard_normal((n, 3))):
        np.testing.assert_allclose(form.rotate(b), Q.T @ b, atol=1e-14)
        np.testing.assert_allclose(form.times(b), T @ b, atol=1e-14)
        np.testing.assert_allclose(form.solver(0.1, 0.5)(b), np.linalg.solve(0.5 * T + 0.1 * np.eye(n), b), rtol=1e-10)


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal"])
def test_the_sign_test_is_as_sharp_with_every_solver_and_any_ridge(solver):
    V = np.linalg.qr(np.random.default_rng(7).standard_normal((30, 30)))[0]

    def risk(least, lam):
        d = np.r_[np.geomspace(1, 1e-3, 29), least]
        K = V * (d / np.linalg.norm(d)) @ V.T
        return krr.risk_map((K + K.T) / 2, np.ones(30), np.ones((2, 30)), np.ones(2), 0.5, lam, [1], solver=solver)

    for lam in (1e-3, 1.0, 1e6):
        risk(-0.5e-8, lam)
        with pytest.raises(linalg.NotPositiveSemidefiniteError, match="positive semidefinite"):
            risk(-5e-8, lam)


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e149])
def test_frobenius_norm(scale):
    K = random_kernel(8, 20)
    assert linalg.frobenius_norm(K * scale) == pytest.approx(np.linalg.norm(K) * scale, rel=1e-13)


def test_condition_by_cholesky_is_a_bound_or_an_estimate():
    K, y = random_kernel(9, 30, rank=20), np.ones(30)
    exact = krr.chain(K, y, 1e-3, 0.5, [1], solver="eigh").condition
    bound = krr.chain(K, y, 1e-3, 0.5, [1], solver="cholesky").condition
    assert exact <= bound <= 5 * exact
    full = random_kernel(9, 30)  # its smallest eigenvalue is 1e-3, and a bound by lam = 1e-12 would be 1e12
    estimate = krr.chain(full, y, 1e-12, 0.5, [1], solver="cholesky").condition
    one_norm = np.linalg.cond(full, 1)
    assert one_norm / 3 < estimate < 3 * one_norm


@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_bad_kernels_are_refused_by_name(solver):
    def solve(K):
        return krr.chain(np.array(K, dtype=float), np.ones(2), 10.0, 0.5, [1], solver=solver)

    solve([[2, 1], [1, 2]])
    with pytest.raises(linalg.NotSymmetricError, match="symmetric"):
        solve([[2, 1], [0.5, 2]])
    with pytest.raises(linalg.NotPositiveSemidefiniteError, match="positive semidefinite"):
        solve([[1, 2], [2, 1]])
    for bad in (math.nan, math.inf, 1e200):
        with pytest.raises(linalg.NotFiniteError):
            solve([[1, bad], [bad, 1]])
    for shape in ((2, 3), (2,), (0, 0)):
        with pytest.raises(linalg.KernelMatrixError, match="square"):
            krr.chain(np.ones(shape), np.ones(2), 1.0, 0.5, [1], solver=solver)


def test_eigenvalues_a_hair_below_zero_are_zero():
    K = random_kernel(6, 20, rank=4)
    d = krr.decompose(K).d
    assert (np.linalg.eigvalsh(K) < 0).any()
    assert d.min() == 0
    assert (np.diff(d) <= 0).all()


def test_decomposition_gives_the_kernel_back_and_keeps_its_input(K):
    before = K.copy()
    spectrum = krr.decompose(K)
    np.testing.assert_array_equal(K, before)
    np.testing.assert_allclose(spectrum.V * spectrum.d @ spectrum.V.T, K, atol=1e-14)
    again = krr.decompose(before, overwrite=True)
    np.testing.assert_array_equal(again.d, spectrum.d)


def test_bad_arguments_are_refused(K, spectrum, data):
    y, d = data.y, spectrum.d
    for lam in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="lam"):
            krr.diagonals(d, lam, 0.5, 1)
        with pytest.raises(ValueError, match="lam"):
            krr.chain(K, y, lam, 0.5, [1], solver="cholesky")
    for alpha in (math.nan, [], [[0.5]], [0.1, math.inf]):
        with pytest.raises(ValueError, match="alpha"):
            krr.diagonals(d, 0.2, alpha, 1)
    for step in (0, -1, 1.5, math.nan):
        with pytest.raises(ValueError, match="steps"):
            krr.diagonals(d, 0.2, 0.5, step)
    with pytest.raises(ValueError, match="row for each"):
        krr.chain(K, y[:-1], 0.2, 0.5, [1])
    with pytest.raises(linalg.NotFiniteError, match="y has"):
        krr.chain(K, y * math.nan, 0.2, 0.5, [1])
    with pytest.raises(ValueError, match="solver"):
        krr.chain(K, y, 0.2, 0.5, [1], solver="qr")
    with pytest.raises(ValueError, match="belongs"):
        krr.risk_map(K, y, np.ones((3, 11)), np.ones(4), [0.5], [0.2], [1])
    for solver in ("cholesky", "tridiagonal"):
        with pytest.raises(ValueError, match="makes no map"):
            krr.risk_map(K, y, np.ones((3, 11)), np.ones(3), [0.5], [0.0], [1], solver=solver)
    with pytest.raises(ValueError, match="two points"):
        krr.risk_map(np.eye(1), [1.0], np.ones((1, 1)), [1.0], [0.5], [0.1], [1], solver="tridiagonal")
    with pytest.raises(ValueError, match="solver"):
        krr.chain(K, y, 0.2, 0.5, [1], solver="tridiagonal")


def test_too_large_a_matrix_is_refused_with_the_figure(K, monkeypatch):
    monkeypatch.setattr(linalg, "available_memory", lambda: 3 * 8 * 11**2 - 1)
    with pytest.raises(linalg.MatrixTooLargeError, match=r"n = 11 needs 3 arrays of 11 x 11"):
        krr.decompose(K)
    krr.decompose(K.copy(), overwrite=True)
    monkeypatch.undo()
    with pytest.raises(linalg.MatrixTooLargeError, match=r"23283\.1 GiB"):
        linalg.require_memory(1_250_000, arrays=2)
    room = linalg.available_memory()
    assert room is None or room > 2**20


# ------------------------------------------------------------------------------------------------------- a trusted K


def test_a_trusted_kernel_gives_the_same_chain():
    K, y = problem_of(40)
    plain, trusted = (krr.chain(K, y, 0.2, 0.35, [1, 3, 10], solver="cholesky", trusted=t) for t in (False, True))
    np.testing.assert_array_equal(trusted.coefficients, plain.coefficients)
    assert trusted.condition == plain.condition


def test_trust_is_what_leaves_the_test_of_eigenvalues_out():
    K, y = problem_of(40)
    K = K - 0.1 * np.eye(40)  # whose least eigenvalue is clearly negative, and hidden by lam
    with pytest.raises(linalg.NotPositiveSemidefiniteError):
        krr.chain(K, y, 0.2, 0.35, [3], solver="cholesky")
    assert np.isfinite(krr.chain(K, y, 0.2, 0.35, [3], solver="cholesky", trusted=True).coefficients).all()


def problem_of(n):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n, 3))
    return np.exp(-((X[:, None] - X) ** 2).sum(2)), rng.standard_normal(n)
