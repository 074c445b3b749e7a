"""kernel/twin.py: kernel ridge chains with an intercept, and best alphas in [0, 1], against direct solves and grids."""

import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from distill import krr
from distill.kernel.twin import (
    ALPHAS,
    LAMS,
    bounded_greedy_alphas,
    forecast,
    joint_alphas,
    make_twin,
    scores,
    standardise,
)

N = 40
Q = 25
P = 6
CLASSES = 3


def problem(seed: int = 0, noise: float = 0.5):
    """Features (N, P) and (Q, P) of other means and units, one-hot labels: some wrong, the held-out ones right."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(P, CLASSES))
    X = rng.normal(size=(N, P))
    Z = rng.normal(size=(Q, P))
    labels = (X @ weights).argmax(1)
    truth = (Z @ weights).argmax(1)
    wrong = rng.random(N) < noise
    labels[wrong] = rng.integers(0, CLASSES, wrong.sum())
    scale = rng.uniform(0.1, 10, P)
    shift = rng.normal(size=P)
    return X * scale + shift, np.eye(CLASSES)[labels], Z * scale + shift, np.eye(CLASSES)[truth]


def raw_kernel(kernel, X, Z):
    """k(z, x), not centred, in loops: the definition."""
    X, Z = standardise(X, Z)
    if kernel == "linear":
        return np.array([[z @ x / P for x in X] for z in Z])
    median = np.median([np.linalg.norm(a - b) ** 2 for a, b in itertools.combinations(X, 2)])
    return np.array([[math.exp(-(np.linalg.norm(z - x) ** 2) / (2 * median)) for x in X] for z in Z])


def ridge_with_intercept(K, target, lam):
    """Kernel ridge with an unpenalised intercept as one linear system of n + 1 equations: (c, b)."""
    n = len(K)
    system = np.block([[K + lam * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.vstack([target, np.zeros((1, target.shape[1]))]))
    return solution[:-1], solution[-1]


def chain_directly(kernel, lam, alphas):
    """Held-out predictions of every fit, each student fitted by a solve of its own to its blended targets."""
    X, Y, Z, _ = problem()
    K = raw_kernel(kernel, X, X)
    K_new = raw_kernel(kernel, X, Z)
    target = Y
    out = []
    for alpha in [*alphas, 0.0]:
        c, b = ridge_with_intercept(K, target, lam)
        out.append(K_new @ c + b)
        target = alpha * Y + (1 - alpha) * (K @ c + b)
    return np.array(out)


def twin(kernel="rbf"):
    return make_twin(kernel, *problem(), lam=0.3)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("alphas", [(0.3, 0.3, 0.3), (0.0, 0.9, 0.2), (1.0, 0.0, 0.5)])
def test_predictions_are_those_of_ridge_regressions_with_an_intercept(kernel, alphas):
    assert_allclose(twin(kernel).predict(alphas, [0, 1, 2, 3]), chain_directly(kernel, 0.3, alphas), atol=1e-10)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_limit_is_an_ordinary_fit_with_lam_over_alpha(kernel):
    X, Y, Z, _ = problem()
    c, b = ridge_with_intercept(raw_kernel(kernel, X, X), Y, 0.3 / 0.4)
    assert_allclose(twin(kernel).predict(0.4, [math.inf])[0], raw_kernel(kernel, X, Z) @ c + b, atol=1e-10)


def test_limit_without_ground_truth_is_the_class_frequencies():
    _, Y, _, _ = problem()
    assert_allclose(twin().predict(0, [math.inf])[0], np.tile(Y.mean(0), (Q, 1)), atol=1e-12)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_predictions_sum_to_one(kernel):
    assert_allclose(twin(kernel).predict(0.3, [0, 1, 5, math.inf]).sum(-1), 1, atol=1e-10)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_degrees_of_freedom_are_the_trace_of_the_hat_matrix(kernel):
    X, *_ = problem()
    K = raw_kernel(kernel, X, X)
    hats = []
    for target in (np.eye(N), None):  # column i of the hat matrix: the fit to the i-th unit vector
        target = hats[0] if target is None else target
        c, b = ridge_with_intercept(K, target, 0.3)
        hats.append(K @ c + b)
    assert_allclose(twin(kernel).degrees_of_freedom(0, [0, 1]), [np.trace(hat) for hat in hats], atol=1e-9)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_predictions_do_not_depend_on_order_or_units(kernel):
    X, Y, Z, T = problem()
    rng = np.random.default_rng(1)
    rows = rng.permutation(N)
    columns = rng.permutation(P)
    classes = rng.permutation(CLASSES)
    other = make_twin(kernel, -7 * X[rows][:, columns] + 3, Y[rows][:, classes], -7 * Z[:, columns] + 3, T, lam=0.3)
    expected = twin(kernel).predict(0.3, [0, 2])[:, :, classes]
    assert_allclose(other.predict(0.3, [0, 2]), expected, atol=1e-10)


def test_standardised_constant_features_are_zero():
    X, _, Z, _ = problem()
    constant = np.full((N, 1), 0.1, np.float32), np.full((Q, 1), 5.0, np.float32)
    for with_it, without in zip(
        standardise(np.hstack([X, constant[0]]), np.hstack([Z, constant[1]])), standardise(X, Z), strict=True
    ):
        assert_allclose(with_it, np.hstack([without, np.zeros((len(without), 1))]), atol=1e-12)


def test_identical_points_give_the_class_frequencies():
    _, Y, _, T = problem()
    same = make_twin("rbf", np.ones((N, P)), Y, np.ones((Q, P)), T, lam=0.1)
    assert_allclose(same.predict(0.5, [0, 3]), np.broadcast_to(Y.mean(0), (2, Q, CLASSES)), atol=1e-12)


def test_scores_by_hand():
    predictions = np.array([[[0.5, 0.5, 0], [0, 0.2, 0.8]]])
    error, accuracy = scores(predictions, np.eye(3)[[0, 1]])
    assert_allclose(error, [(0.5 + (0.64 + 0.64)) / 2])
    assert_allclose(accuracy, [0.5])


# ---- a linear problem where the answer is known


def test_one_direction_with_known_risk():
    """One feature, x = ±1 in equal parts: A is d / (d + lam) in that direction, with d = n, and all follows by hand."""
    x = np.repeat([1.0, -1.0], 20)[:, None]
    given = np.eye(2)[np.r_[[0] * 15, [1] * 5, [1] * 15, [0] * 5]]  # a quarter is wrong
    truth = np.eye(2)[np.r_[[0] * 20, [1] * 20]]
    one = make_twin("linear", x, given, x, truth, lam=10.0)
    # Centred targets are ±1/2; their mean in a group is 1/4, which fit k shrinks to b/4, and the truth is 1/2 away.
    b = [40 / 50]
    for alpha in (0.3, 0.6):
        b.append(40 / 50 * (alpha + (1 - alpha) * b[-1]))
    error, accuracy = one.score([0.3, 0.6], [0, 1, 2])
    assert_allclose(error, [2 * (1 / 2 - factor / 4) ** 2 for factor in b], rtol=1e-12)
    assert_allclose(accuracy, 1)
    assert_allclose(one.degrees_of_freedom([0.3, 0.6], [0, 1, 2]), 1 + np.array(b), rtol=1e-12)
    # Shrinking only harms here: the best weight is the least distillation.
    assert_allclose(bounded_greedy_alphas(one.residuals(4), 0, 1)[0], 1)
    assert_allclose(joint_alphas(one.residuals(4)), 1)


def risk_of(twin, alphas):
    return twin.score(alphas, [len(alphas)])[0][0]


def noisy(kernel="linear", lam=0.02):
    """A problem where distillation helps: many directions, many wrong labels, hardly any ridge."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(60, 30))
    Z = rng.normal(size=(200, 30))
    weights = np.zeros((30, 2))
    X[:, :3] = 3 * X[:, :3]
    Z[:, :3] = 3 * Z[:, :3]
    weights[:3] = rng.normal(size=(3, 2))
    X += X[:, :3] @ rng.normal(size=(3, 30))  # features that agree: large eigenvalues
    Z += Z[:, :3] @ rng.normal(size=(3, 30))
    labels = (X @ weights).argmax(1)
    wrong = rng.random(60) < 0.3
    labels[wrong] = 1 - labels[wrong]
    return make_twin(kernel, X, np.eye(2)[labels], Z, np.eye(2)[(Z @ weights).argmax(1)], lam=lam)


@pytest.mark.parametrize("lam", [0.02, 0.5, 20.0])
def test_greedy_alphas_against_a_grid(lam):
    found = noisy(lam=lam)
    clipped, free, _ = bounded_greedy_alphas(found.residuals(4), 0, 1)
    grid = np.linspace(0, 1, 1001)
    for k in range(3):
        risks = [risk_of(found, [*clipped[:k], alpha]) for alpha in grid]
        assert abs(clipped[k] - grid[np.argmin(risks)]) <= 0.5e-3 + 1e-9
    assert_allclose(clipped, np.clip(free, 0, 1))


@pytest.mark.parametrize("lam", [0.02, 0.5, 20.0])
def test_joint_alphas_against_a_grid(lam):
    found = noisy(lam=lam)
    best = risk_of(found, joint_alphas(found.residuals(3)))
    grid = np.linspace(0, 1, 41)
    least = min(risk_of(found, pair) for pair in itertools.product(grid, grid))
    assert best <= least + 1e-12
    assert best >= least - 1e-3
    assert best <= risk_of(found, bounded_greedy_alphas(found.residuals(3), 0, 1)[0]) + 1e-12


def test_joint_alphas_in_the_range_are_the_unconstrained_ones():
    residuals = np.random.default_rng(0).normal(size=(4, 50))
    weights, _ = krr.joint_weights(residuals)
    assert (weights > 0).all()
    assert_allclose(joint_alphas(residuals), krr.weights_to_alphas(weights), rtol=1e-8)
    assert_allclose(joint_alphas(1e-9 * residuals), krr.weights_to_alphas(weights), rtol=1e-6)


def test_cross_validated_alphas_use_no_held_out_point():
    X, Y, Z, T = problem()
    one, other = (make_twin("rbf", X, Y, z, t, lam=0.3) for z, t in ((Z, T), (Z[:5] + 1, T[:5])))
    schedules = [forecast(each, 3).schedules["cross-validated"].alphas for each in (one, other)]
    assert_allclose(*schedules, rtol=1e-12)
    first = cross_validation(raw_kernel("rbf", X, X), Y, 0.3)
    assert_allclose((one.cross_validated_residuals(2)[0] ** 2).mean(), first, rtol=1e-9)


# ---- the ridge, and everything together


def cross_validation(K, Y, lam):
    """n - 1 times the residual sum of squares over (n - tr H)², by the hat matrix H of a fit with its intercept."""
    c, b = ridge_with_intercept(K, np.eye(N), lam)
    hat = K @ c + b
    return (N - 1) * np.mean(((Y - hat @ Y) ** 2).sum(0)) / (N - np.trace(hat)) ** 2


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_ridge_minimises_cross_validation(kernel):
    X, Y, Z, T = problem()
    found = make_twin(kernel, X, Y, Z, T)
    K = raw_kernel(kernel, X, X)
    lams = found.spectrum.d[0] * LAMS
    assert found.lam == pytest.approx(min(lams, key=lambda lam: cross_validation(K, Y, lam)), rel=1e-9)
    assert lams[0] < found.lam < lams[-1]


def test_cross_validation_counts_the_intercept():
    """The intercept takes a degree of freedom; if that is forgotten, the least ridge seems to have no error at all."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 400))
    Y = np.eye(2)[rng.integers(0, 2, 50)]  # labels that have nothing to do with X
    found = make_twin("rbf", X, Y, X[:5], Y[:5])
    assert found.lam == pytest.approx(10 * found.spectrum.d[0])


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_ridge_of_the_teacher_is_recovered(kernel):
    X, Y, Z, T = problem()
    K = raw_kernel(kernel, X, X)
    lam = LAMS[60] * make_twin(kernel, X, Y, Z, T, lam=1).spectrum.d[0]
    c, b = ridge_with_intercept(K, Y, lam)
    found = make_twin(kernel, X, Y, Z, T, teacher_outputs=K @ c + b)
    assert found.lam == pytest.approx(lam, rel=1e-9)
    memorised = make_twin(kernel, X, Y, Z, T, teacher_outputs=Y)
    assert memorised.lam == pytest.approx(LAMS[0] * found.spectrum.d[0])
    flat = np.tile(Y.mean(0), (N, 1))  # a teacher that has learned nothing
    assert make_twin(kernel, X, Y, Z, T, teacher_outputs=flat).lam == pytest.approx(LAMS[-1] * found.spectrum.d[0])


def test_forecast_holds_the_twins_scores():
    each = twin()
    whole = forecast(each, 3)
    assert whole.steps.tolist() == [0, 1, 2, 3, math.inf]
    i = 7
    error, accuracy = each.score(ALPHAS[i], whole.steps)
    assert_allclose(whole.error[i], error)
    assert_allclose(whole.accuracy[i], accuracy)
    assert_allclose(whole.error[-1], whole.error[-1, 0], rtol=1e-10)  # alpha 1 is no distillation
    assert_allclose(whole.error[:, 0], whole.error[0, 0])  # and step 0 is the teacher, whatever alpha
    for schedule in whole.schedules.values():
        assert schedule.alphas.shape == (3,)
        assert_allclose(schedule.error, each.score(schedule.alphas, range(4))[0])
    assert whole.schedules["joint"].error[-1] <= whole.error[:, 3].min() + 1e-12
    assert whole.schedules["greedy"].error[1] <= whole.error[:, 1].min() + 1e-12


def test_forecast_without_students_is_an_error():
    with pytest.raises(ValueError, match="at least one student"):
        forecast(twin(), 0)
