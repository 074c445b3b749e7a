"""kernel/study: the program on real data, from its options to its tables and figures."""

import csv
import math

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from toys import run

from distill.config import DataConfig
from distill.data.load import load_source
from distill.data.splits import make_dataset
from distill.kernel.study.data import load_problem
from distill.kernel.study.results import Study
from distill.kernel.study.routes import make_route
from distill.kernel.toy.options import parse

DIGITS = ["--dataset", "digits", "--train-size", 100, "--test-size", 50, "--label-noise", 0.3]
STEPS = [1, 2, 3, math.inf]
ALPHAS = np.array([-0.2, 0.0, 0.3, 1.0])


def study_of(folder, *options):
    """The study that a command line asks for, without its files."""
    args = parse([str(option) for option in options])
    problem = load_problem(args, None)
    route = make_route(args, problem, ALPHAS, STEPS, folder)
    return Study(problem, route, args.alpha or [0.3], args.alpha_schedule or [])


def regression(path, n=60, p=5, noise=1.0):
    """An NPZ file with a noisy linear rule: n training, 40 held-out and 30 test points."""
    rng = np.random.default_rng(0)
    beta = rng.standard_normal(p)
    arrays = {}
    for part, size in (("", n), ("_val", 40), ("_test", 30)):
        X = rng.standard_normal((size, p))
        arrays |= {f"X{part}": X, f"y{part}": X @ beta + noise * rng.standard_normal(size)}
    np.savez(path, **arrays)
    return path, arrays


def test_a_cell_is_a_chain_of_refits(tmp_path):
    study = study_of(tmp_path, *DIGITS, "--val-size", 40, "--gamma", 0.1, "--lam", 0.5, 2)
    problem = study.problem
    target = problem.train.y
    for step in range(3):
        model = KernelRidge(alpha=2, kernel="rbf", gamma=0.1).fit(problem.train.X.astype(float), target)
        for part, name in ((problem.val, "val"), (problem.test, "test")):
            output = model.predict(part.X.astype(float))
            loss = ((output - part.y) ** 2).mean()
            error = (output.argmax(axis=1) != part.y.argmax(axis=1)).mean()
            np.testing.assert_allclose(study.maps[f"{name}_loss"][2, 1, step], loss, rtol=1e-9)
            assert study.maps[f"{name}_error"][2, 1, step] == pytest.approx(error)
        target = 0.3 * problem.train.y + 0.7 * model.predict(problem.train.X.astype(float))


def test_images_and_labels_are_those_of_the_network_half(tmp_path):
    problem = load_problem(parse([str(word) for word in [*DIGITS, "--val-size", 40, "--seed", 3]]), None)
    config = DataConfig(dataset="digits", train_size=100, test_size=50, val_size=40, label_noise=0.3)
    dataset = make_dataset(load_source(config), config, 3)
    for part, split in ((problem.train, dataset.train), (problem.val, dataset.val), (problem.test, dataset.test)):
        np.testing.assert_array_equal(part.X, split.images.reshape(len(split), -1).astype(np.float32) / 255)
        np.testing.assert_array_equal(part.y.argmax(axis=1), split.labels)
    assert problem.note == "30.0% of the training labels are wrong"


@pytest.mark.parametrize("val", [0, 40])
def test_all_routes_give_the_same_maps(tmp_path, val):
    options = [*DIGITS, "--val-size", val, "--kernel", "linear", "--lam", 0.5, 5, "--alpha", 0.3, "auto"]
    features, eigh = (study_of(tmp_path, *options, "--solver", solver) for solver in ("features", "eigh"))
    lanczos = study_of(tmp_path, *options, "--solver", "lanczos", "--tolerance", 1e-9)
    for other in (eigh, lanczos):
        for name in features.maps:
            exact = name not in ("gcv", "freedom") or other is eigh  # by lanczos, traces are estimates
            # The bound of 1e-9 on fitted values leaves more for new points, whose kernel rows are not K's.
            tolerance = 1e-6 if exact else 0.2
            np.testing.assert_allclose(other.maps[name], features.maps[name], rtol=tolerance, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(eigh.losses, features.losses, rtol=1e-6)
    np.testing.assert_allclose(eigh.curves[0].alpha, features.curves[0].alpha, rtol=1e-6)


def test_the_intercept_is_not_penalised(tmp_path):
    path, arrays = regression(tmp_path / "shifted.npz")
    np.savez(path, **{name: values + 100 if name.startswith("y") else values for name, values in arrays.items()})
    study = study_of(tmp_path, "--data", path, "--kernel", "linear", "--intercept", "--lam", 1e9)
    assert study.maps["val_loss"][3, 0, 0] < arrays["y_val"].var() * 1.5
    np.testing.assert_allclose(study.maps["freedom"][3, 0, 0], 1, atol=1e-6)


def test_the_best_alpha_has_the_sign_of_the_slope_of_the_teachers_risk(tmp_path):
    """1 - alpha* = -lam R'(lam) / (2 <e, e>), e the teacher's prediction minus the pure student's (Dang et al.)."""
    path, _ = regression(tmp_path / "ridge.npz", p=30, noise=6.0)
    lams = np.geomspace(1e-2, 1e4, 25)
    shift = 1e-5
    study = study_of(tmp_path, "--data", path, "--kernel", "linear", "--lam", *lams)
    nearby = study_of(tmp_path, "--data", path, "--kernel", "linear", "--lam", *(lams * (1 + shift)))
    curves = study.curves[0]
    slope = (nearby.curves[0].teacher - curves.teacher) / (shift * lams)
    clear = np.abs(slope * lams) > 1e-4 * curves.teacher
    assert clear.sum() > 15
    assert (slope[clear] > 0).any()
    assert (slope[clear] < 0).any()
    np.testing.assert_array_equal(np.sign(1 - curves.alpha[clear]), -np.sign(slope[clear]))
    for j in np.flatnonzero(clear):
        chain = study.route.chain.predict(study.route.rows(study.problem.val.X), lams[j], 0.0, [1, 2])
        square = ((chain[0] - chain[1]) ** 2).mean()
        assert 1 - curves.alpha[j] == pytest.approx(-lams[j] * slope[j] / (2 * square), rel=1e-2)


def test_a_folder_of_npy_files_is_read_as_the_npz_file_is(tmp_path, capsys, nothing_drawn):
    path, arrays = regression(tmp_path / "a.npz")
    (tmp_path / "folder").mkdir()
    for name, values in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", values)
    printed = []
    for data in (path, tmp_path / "folder"):
        status, out, _ = run(capsys, "--data", data, "--lam", 1, "--output", tmp_path / f"out-{data.name}")
        assert status == 0
        printed.append([line for line in out.splitlines()[1:] if str(tmp_path) not in line])  # the first names the file
    assert printed[0] == printed[1]


@pytest.mark.parametrize("val", [0, 40])
def test_test_points_never_choose(tmp_path, val):
    path, arrays = regression(tmp_path / "a.npz")
    if not val:
        arrays = {name: values for name, values in arrays.items() if not name.endswith("_val")}
        np.savez(path, **arrays)
    options = ["--kernel", "rbf", "--alpha", "auto"]
    before = study_of(tmp_path, "--data", path, *options)
    np.savez(path, **arrays | {"y_test": -arrays["y_test"]})
    after = study_of(tmp_path, "--data", path, *options)
    assert (before.best, before.chains) == (after.best, after.chains)
    for name in ("chosen", "teacher", "first student"):
        assert before.summary[name][0] == after.summary[name][0]
    np.testing.assert_array_equal(before.curves[1].alpha, after.curves[1].alpha)
    assert not np.allclose(before.losses, after.losses)


def test_files_hold_what_the_screen_says(capsys, tmp_path, nothing_drawn):
    options = [*DIGITS, "--val-size", 40, "--lam", 0.1, 1, "--alpha", 0.3, "auto", "--alpha-schedule", 0.2, 0.4]
    status, out, error = run(capsys, *options, "--output", tmp_path / "out")
    assert (status, error) == (0, "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {"lambda.png", "risk_map.png", "lambda_map.png", "spectrum.png"}
    assert names == {"map.csv", "lambda.csv", "eigenvalues.csv", *figures}
    with open(tmp_path / "out" / "map.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 21 * 2 * 7
    best = min(cells, key=lambda cell: float(cell["val_loss"]))
    summary = {line.split()[0]: line.split() for line in out.splitlines()[3:8] if line}
    assert summary["chosen"][1:4] == [best["step"], best["alpha"], f"{float(best['lambda']):.4g}"]
    assert summary["chosen"][4] == f"{float(best['val_loss']):.5g}"
    oracle = min(float(cell["test_loss"]) for cell in cells)
    assert f"{oracle:.5g}" in summary["oracle"]
    assert "auto: alpha = " in out
    assert "schedule" in out
    tables = out.split("\n\n")
    at_best = [c for c in cells if c["lambda"] == best["lambda"] and c["alpha"] == "0.3" and c["step"] == "3"]
    assert f"{float(at_best[0]['test_loss']):.5f}" in tables[4].splitlines()[3]
    assert f"{1 - float(at_best[0]['test_error']):.4f}" in tables[6].splitlines()[3]
    eigenvalues = (tmp_path / "out" / "eigenvalues.csv").read_text().splitlines()
    assert len(eigenvalues) == 101


def test_chains_that_overflow_are_never_chosen(capsys, tmp_path):
    options = [
        *DIGITS,
        "--distillation-steps",
        10**9,
        "--alpha",
        -0.5,
        0.3,
        "--lam",
        0.1,
        10,
        "--no-figures",
        "--output",
        tmp_path,
    ]
    status, out, error = run(capsys, *options)
    assert (status, error) == (0, "")
    assert "nan" not in out
    assert "diverges" in out
    chosen = next(line.split() for line in out.splitlines() if line.strip().startswith("chosen"))
    assert all(math.isfinite(float(value)) for value in chosen[2:])


def test_a_csv_file_with_classes_in_words(capsys, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "flowers.csv"
    lines = [f"{a},{b},{'rose' if a + b > 0 else 'tulip, red'!r}" for a, b in rng.standard_normal((80, 2))]
    path.write_text("a,b,kind\n" + "\n".join(lines).replace("'tulip, red'", '"tulip, red"') + "\n")
    options = ["--data", path, "--standardise", "--test-size", 20, "--output", tmp_path / "out", "--no-figures"]
    status, out, error = run(capsys, *options)
    assert (status, error) == (0, "")
    assert "flowers: 60 training points with 2 inputs, 2 classes, 20 test points" in out
    assert "the classes of kind are 'rose', tulip, red" in out
    assert "of the whole map, by generalised cross-validation" in out
    status, out, error = run(capsys, *options, "--target", "a")
    assert status == 2
    assert "line 2: column kind has 'tulip, red', but needs a finite number" in error


def test_only_the_plain_toy_writes_into_figures(capsys, tmp_path, monkeypatch, nothing_drawn):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dose.csv").write_text("dose,response\n0,1\n1,2\n2,2\n")
    run(capsys, "--dpi", 30)
    for words, name in (
        (["--alpha", 0.5], "krr-toy"),
        (["--data", "dose.csv"], "krr-dose"),
        ([*DIGITS, "--lam", 1, "--no-figures"], "krr-digits"),
    ):
        assert run(capsys, *words, "--dpi", 30)[0] == 0
        assert (tmp_path / "runs" / name).is_dir()
    assert len(list((tmp_path / "figures").iterdir())) == 9


def test_an_interrupted_lanczos_run_resumes_from_its_basis(tmp_path, monkeypatch):
    from distill.kernel.study import routes

    options = [*DIGITS, "--solver", "lanczos", "--lam", 1, 10, "--tolerance", 1e-6]
    products = []
    stop_at = 8  # five products find the largest eigenvalue

    def count(self, block, original=routes.KernelTiles._matmat):
        products.append(block.shape[1])
        if len(products) == stop_at:
            raise KeyboardInterrupt
        return original(self, block)

    monkeypatch.setattr(routes.KernelTiles, "_matmat", count)
    with pytest.raises(KeyboardInterrupt):
        study_of(tmp_path / "a", *options)
    products.clear()
    stop_at = 0
    resumed = study_of(tmp_path / "a", *options)
    again = len(products)
    products.clear()
    whole = study_of(tmp_path / "b", *options)
    assert again < len(products)
    np.testing.assert_allclose(resumed.maps["test_loss"], whole.maps["test_loss"], rtol=1e-6)


BAD_ARRAYS = {
    "NaN": ({"X": [[1.0], [math.nan]], "y": [0.0, 1.0]}, "NaN"),
    "no y": ({"X": [[1.0], [2.0]]}, "no array y"),
    "widths": ({"X": [[1.0], [2.0]], "y": [0.0, 1.0], "X_test": [[1.0, 2.0]], "y_test": [0.0]}, "X_test has 2"),
    "half a test": ({"X": [[1.0], [2.0]], "y": [0.0, 1.0], "X_test": [[1.0]]}, "X_test and y_test, or neither"),
    "lengths": ({"X": [[1.0], [2.0]], "y": [0.0]}, "y must be 2"),
    "shape": ({"X": [1.0, 2.0], "y": [0.0, 1.0]}, "X must be numbers (n, p)"),
    "one class": ({"X": [[1.0], [2.0]], "y": [3, 3]}, "one class"),
    "kinds": ({"X": [[1.0], [2.0]], "y": [0, 1], "X_test": [[1.0]], "y_test": [0.5]}, "real numbers"),
    "objects": ({"X": np.array([[None], [2]], object), "y": [0, 1]}, "cannot be read as an NPZ file"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_one_line(capsys, tmp_path, name):
    arrays, message = BAD_ARRAYS[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    status, out, error = run(capsys, "--features", tmp_path / "bad.npz", "--output", tmp_path / "out")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert message in error
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = [
    (["--dataset", "digits", "--data", "x.csv"], "leave one out"),
    (["--dataset", "digits", "--n", 5], "--n is for the toy"),
    (["--dataset", "digits", "--noise", 0], "--noise is for the toy"),
    (["--dataset", "digits", "--intercept"], "--intercept needs --kernel linear"),
    (["--dataset", "digits", "--solver", "features"], "--solver features is for --kernel linear"),
    (["--dataset", "digits", "--tolerance", 0], "--tolerance"),
    (
        ["--dataset", "digits", "--train-size", 100, "--memory", 0],
        "--memory is for --solver lanczos, and",
    ),
    (["--dataset", "digits", "--target", "y"], "--target is for a CSV file, which --data names"),
    (["--dataset", "digits", "--kernel", "linear", "--gamma", 3], "--gamma is for the other kernels"),
    (["--dataset", "digits", "--kernel", "polynomial", "--gamma", 1e100], "--gamma 1e+100: --kernel polynomial cubes"),
    (["--dataset", "features"], "needs the file: --data FILE.npz"),
    (["--dataset", "features", "--data", "text.npz"], "cannot be read as an NPZ file"),
    (["--dataset", "nowhere"], "dataset must be one of"),
    (["--data", "some.csv", "--labels", "coarse"], "--labels is for --dataset"),
    (["--solver", "eigh"], "--solver is for real data"),
    (["--label-noise", 0.4], "--label-noise is for real data"),
    (["--val-size", 0], "--val-size is for real data"),
    (["--memory", 0], "--memory is for real data"),
    (["--lam", 1, 2], "several values of --lam"),
    (["--data", "some.csv", "--target", "weigth"], "did you mean weight?"),
    (["--data", "some.csv", "--label-noise", 0.1], "needs classes"),
    (["--data", "some.csv", "--test-size", 3], "too few"),
    (["--data", "some.csv", "--lam", 0], "--lam must be above"),
    (["--data", "some.csv", "--lam", 1, 1e-18], "not 1e-18"),
    (["--data", "some.csv", "--kernel", "linear", "--solver", "lanczos", "--lam", 1e-300], "not 1e-300"),
    (["--data", "some.csv", "--solver", "lanczos", "--max-basis", 1], "less than the 21 columns"),
    (["--data", "some.npz", "--target", "weight"], "--target is for a CSV file"),
    (["--data", "some.npz", "--classification"], "--classification is for a CSV file"),
    (["--data", "mixed.npz"], "y holds whole numbers, but y_test holds text"),
    (["--data", "missing.csv"], "missing value"),
    (["--data", "text.npz"], "cannot be read as an NPZ file"),
    (["--data", "some.csv", "--solver", "lanczos", "--lam", 1e-12, "--max-basis", 25], "lam = 1e-12"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[message for _, message in BAD_OPTIONS])
def test_bad_options_are_one_line(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    table = "\n".join(",".join(f"{v:.3f}" for v in row) for row in rng.standard_normal((3 if 3 in options else 40, 3)))
    (tmp_path / "some.csv").write_text(f"height,age,weight\n{table}\n")
    (tmp_path / "missing.csv").write_text("a,b,y\n1,2,3\n1,,3\n")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "some.npz", X=np.eye(3), y=np.arange(3.0))
    np.savez(tmp_path / "mixed.npz", X=np.eye(2), y=np.arange(2), X_test=np.eye(2), y_test=np.array(["a", "b"]))
    before = sorted(tmp_path.rglob("*"))
    status, out, error = run(capsys, *options)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert message in error
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "lanczos" not in str(path)] in (
        [],
        [tmp_path / "runs", tmp_path / "runs" / "krr-some"],
    )
