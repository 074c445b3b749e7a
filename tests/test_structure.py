"""Who may import whom, which packages never import torch, and how long files and functions may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "distill"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

# Light modules: loading them loads neither torch nor NumPy. Each may import those before it, packages may import all.
LIGHT = (
    *(
        "errors",
        "program",
        "arguments",
        "named",
        "files",
        "environment",
        "records",
        "arms",
        "noise",
        "losses",
        "metrics",
    ),
    *("options", "grid", "sections", "config", "configfile", "study", "parser"),
)
# What each package, and each public name at the top, may import besides. The order is from the bottom up.
MAY_IMPORT = {
    "randomness": set(),
    "data": {"randomness"},
    "pages": set(),
    "kernel": {"data", "randomness", "pages"},
    "store": set(),
    "reporting": {"store", "kernel", "pages"},
    "training": {"data", "randomness"},
    "chains": {"training", "data", "store", "kernel", "randomness"},
    "running": {"chains", "training", "data", "store", "reporting", "kernel", "pages", "randomness"},
    "cli": {"running", "reporting", "store"},
    "krr": {"kernel"},
    "device_kernel": {"kernel"},
    "estimator": {"kernel"},
    "starting": {"cli", "kernel"},
    "preview": {"running", "starting"},
    "features": {"running", "starting"},
}
WITHOUT_TORCH = {*LIGHT, "randomness", "kernel", "data", "store", "pages", "reporting", "estimator", "krr"}


def place(path: Path) -> str:
    """The package, or the top-level module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, at_load: bool = False) -> set[str]:
    """The full names of the modules that a file imports: all of them, or only those that loading it imports."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _run_at_load(tree) if at_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _run_at_load(node: ast.AST):
    """All nodes outside functions and ``if typing.TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        only_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not only_for_types:
            yield child
            yield from _run_at_load(child)


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("distill.")}


def foreign(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names if not name.startswith("distill")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = place(path)
    if here == "__init__":
        return
    if here in LIGHT:
        allowed = set(LIGHT[: LIGHT.index(here)])
        assert not foreign(imported(path, at_load=True)) & {"torch", "torchvision", "numpy", "scipy", "matplotlib"}
    else:
        assert here in MAY_IMPORT, f"say in MAY_IMPORT what {here} may import"
        allowed = {*LIGHT, *MAY_IMPORT[here], here}
    assert own(imported(path)) <= allowed


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernel").glob("*.py")), ids=lambda path: path.name)
def test_the_closed_forms_import_no_program(path):
    """Only the programs above them, kernel/toy and kernel/study, read data."""
    assert own(imported(path)) <= {*LIGHT, "kernel"}
    assert not {name for name in imported(path) if name.startswith(("distill.kernel.toy", "distill.kernel.study"))}


def test_the_table_of_imports_has_no_circle():
    below: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= below, name
        below.add(name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_packages_without_torch(path):
    if place(path) in WITHOUT_TORCH:
        assert "torch" not in foreign(imported(path, at_load=place(path) in LIGHT))


def modules_after(program: str) -> set[str]:
    """The modules that a fresh Python has loaded after ``program``."""
    program = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{program}\nprint(chr(10) + ' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_after("import distill")
    assert not loaded & {"torch", "numpy", "distill.config"}


def test_a_report_and_a_bad_option_need_no_torch():
    loaded = modules_after("import distill.config, distill.store.rundir, distill.reporting.run_report, distill.cli")
    assert "distill.reporting.run_report" in loaded
    assert "torch" not in loaded


def test_help_loads_neither_torch_nor_numpy():
    program = """
import runpy
sys.argv = ["self_distiller.py", "--help"]
try:
    runpy.run_path("self_distiller.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""
    loaded = modules_after(program)
    assert "distill.cli" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "scipy", "matplotlib"}


PYTHON_FILES = [
    path for top in ("distill", "tests", "benchmarks", "studies") for path in sorted((ROOT / top).rglob("*.py"))
]
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60


def long_functions(path: Path) -> list[str]:
    """The functions of a file, nested ones too, that are longer than allowed: ``path::name``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION:
            found.append(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return found


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines"
    assert not long_functions(path)
