"""kernel/toy/data.py: losses by refits, CSV files, and kernels against scikit-learn's."""

import numpy as np
import pytest
from toys import rows, run

from distill.kernel.kernels import kernel_function
from distill.kernel.toy import data as toy_data
from distill.kernel.toy.options import KERNEL_NAMES


def write_csv(path, columns):
    """A CSV file of columns by name; returns its path."""
    names, values = zip(*columns.items(), strict=True)
    lines = [",".join(names), *(",".join(map(repr, row)) for row in zip(*values, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_leave_one_out_is_refits_without_each_point(capsys, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=12).tolist()
    y = rng.standard_normal(12).tolist()
    path = write_csv(tmp_path / "points.csv", {"y": y, "x": x})
    _, out, _ = run(capsys, "--data", path, "--alpha", 0.3, "--no-figures")
    assert "leave-one-out mean squared error over 12 points" in out
    x = np.array(x)
    y = np.array(y)
    errors = np.zeros((6, 12))
    for i in range(12):
        keep = np.arange(12) != i
        K = np.exp(-80 * (x[keep, None] - x[keep]) ** 2)
        target = y[keep]
        for step in range(6):
            c = np.linalg.solve(K + 0.2 * np.eye(11), target)
            errors[step, i] = np.exp(-80 * (x[i] - x[keep]) ** 2) @ c - y[i]
            target = 0.3 * y[keep] + 0.7 * (K @ c)
    expected = [f"{value:.5f}" for value in (errors**2).mean(axis=1)]
    assert [row[1].rstrip("*") for row in rows(out)[:6]] == expected


@pytest.mark.parametrize("column", ["x", "y", "truth"])
def test_numbers_whose_squares_are_no_floats_are_refused(capsys, tmp_path, column):
    columns = {"x": [0.0, 1.0], "y": [1.0, 2.0], "truth": [1.0, 2.0]} | {column: [1.0, 1e154]}
    status, out, error = run(capsys, "--data", write_csv(tmp_path / "p.csv", columns), "--no-figures")
    assert (status, out) == (2, "")
    assert f"line 3: column {column} has '1e+154', but needs a finite number, at most 1e+100 in size" in error


@pytest.mark.parametrize("lam", ["1e-320", "1e-100", "0"])
@pytest.mark.parametrize("options", [["--gamma", "0"], ["--kernel", "linear"], ["--gamma", "0", "--alpha", "auto"]])
def test_a_ridge_below_the_rounding_of_the_kernel_is_refused(capsys, lam, options):
    status, out, error = run(capsys, *options, "--lam", lam, "--no-figures")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert "lam = " in error or "raise lam" in error


def test_a_step_past_float64s_range_diverges_only_if_the_chain_does(capsys):
    options = ["--distillation-steps", 4, "--no-figures"]
    _, out, _ = run(capsys, "--alpha", -1e99, "--alpha-schedule", 1e99, 1e99, 1e99, 0.5, *options)
    assert [row[1:] for row in rows(out)][-2:] == [["diverges", "overflows"], ["diverges", "0.15219*"]]


def test_some_of_many_points_are_held_out(capsys, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=250)
    path = write_csv(tmp_path / "p.csv", {"x": x.tolist(), "y": (x + rng.normal(size=250)).tolist()})
    _, out, _ = run(capsys, "--data", path, "--no-figures", "--seed", 7)
    assert "held-out mean squared error on 50 of 250 points (seed 7)" in out
    assert out == run(capsys, "--data", path, "--no-figures", "--seed", 7)[1]
    assert rows(out) != rows(run(capsys, "--data", path, "--no-figures", "--seed", 8)[1])


def test_loss_is_against_the_truth_column(capsys, tmp_path):
    data = toy_data.toy()
    truth = toy_data.sinusoid(data.x)
    columns = {"x": data.x.tolist(), "y": data.y.tolist(), "truth": truth.tolist()}
    _, out, _ = run(capsys, "--data", write_csv(tmp_path / "t.csv", columns), "--no-figures", "--alpha", 1)
    assert "against the truth at 11 points" in out
    K = toy_data.kernel_matrix("rbf", data.x, data.x, 80.0)
    fit = K @ np.linalg.solve(K + 0.2 * np.eye(11), data.y)
    assert rows(out)[0][1] == f"{np.mean((fit - truth) ** 2):.5f}*"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first line"),
        (b"a\n1\n", "first line"),
        (b"1,2\n3,4\n", "first line"),
        (b"a;b\n1;2\n", "semicolons"),
        (b"a,b,a\n1,2,3\n", "two columns with the name 'a'"),
        (b"a,b\n1,2\n", "one point"),
        (b"x,y\n", "no rows"),
        (b"x,y\n1,2\n1\n", "line 3"),
        (b"x,y\n1,2\n\n3,x\n", "line 4"),
        (b"x,y\n1,nan\n", "line 2"),
        (b"x,y,truth\n1,2,\n", "line 2"),
        (b"\xff\xfe\x00\x81", "UTF-8"),
        (b"x,y\n1,2\n", "one point"),
    ],
)
def test_errors_in_files_name_the_line(capsys, tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    code, _, err = run(capsys, "--data", path, "--no-figures")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_new_points_have_the_given_noise_and_seed():
    one, same, other = (toy_data.draw(4000, 0.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.y, same.y)
    assert (one.y != other.y).all()
    assert np.std(one.y - toy_data.sinusoid(one.x)) == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(toy_data.draw(5, 0, 3).y, toy_data.sinusoid(np.linspace(0, 1, 5)))


@pytest.mark.parametrize("columns", [1, 3])
def test_kernels_are_scikit_learns(columns):
    from sklearn.gaussian_process.kernels import Matern
    from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel, rbf_kernel

    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (5, columns))
    Z = rng.uniform(0, 2, (4, columns))
    expected = {
        "rbf": rbf_kernel(X, Z, gamma=3),
        "laplacian": np.exp(-3 * euclidean_distances(X, Z)),
        "matern12": Matern(length_scale=6**-0.5, nu=0.5)(X, Z),
        "matern32": Matern(length_scale=6**-0.5, nu=1.5)(X, Z),
        "matern52": Matern(length_scale=6**-0.5, nu=2.5)(X, Z),
        "polynomial": polynomial_kernel(X, Z, degree=3, gamma=3, coef0=1),
        "linear": X @ Z.T,
    }
    assert set(expected) == set(KERNEL_NAMES)
    for name, kernel in expected.items():
        np.testing.assert_allclose(kernel_function(name, 3.0)(X, Z), kernel, rtol=1e-12, err_msg=name)
        if columns == 1:
            np.testing.assert_allclose(toy_data.kernel_matrix(name, X[:, 0], Z[:, 0], 3.0), kernel, rtol=1e-12)
