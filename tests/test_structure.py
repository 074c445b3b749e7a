"""Who may import whom: each file only files above it in its own wing, and what must answer at once imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "distill").glob("*.py")) if path.stem != "__init__"}

# From the top down; cli.py may import anything.
NETWORK = (
    *("config", "draws", "datafiles", "data", "augment", "convolutions", "models"),
    *("objective", "decay", "metrics", "graph", "engine"),
    *("alpha", "rundir", "checkpoints", "chain", "lab", "workers"),
    *("estimate", "sweep", "progress", "plots", "report", "preview_report", "preview", "cli"),
)
KERNEL = ("linalg", "weights", "krr", "twin", "estimator")  # and toy.py with its parts, toy_*.py
WITHOUT_TORCH = ("config", "draws", "datafiles", "data", "rundir", "plots", "report", "preview_report", "cli")
# Where the wings meet: what a network file takes of the kernel wing. A preview is the kernel twin of a network.
MEETING = {"alpha": {"weights"}, "preview": {"twin"}, "preview_report": {"twin"}}


def in_kernel_wing(name: str) -> bool:
    return name in KERNEL or name == "toy" or name.startswith("toy_")


def imported(path: Path, only_at_the_top: bool = False) -> set[str]:
    """Modules that a file imports, those of this package as ``.name``; all of them, or those it imports at once."""
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in _outside_functions(tree) if only_at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = "." * node.level + (node.module or "")
            if home in (".", "distill"):  # from . import engine
                found |= {f".{alias.name}" for alias in node.names}
            else:
                found.add(home)
    return {"." + name.removeprefix("distill.") if name.startswith("distill.") else name for name in found}


def _outside_functions(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


def own(names: set[str]) -> set[str]:
    return {name.removeprefix(".").partition(".")[0] for name in names if name.startswith(".")}


def foreign(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names if not name.startswith(".")}


def test_imports_are_found_however_they_are_written(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(
        "import torch.nn as nn\nfrom torchvision.models import resnet18\nfrom . import engine, data\n"
        "from .config import Config\nimport distill.krr\nfrom distill.chain import Chains\nfrom distill import models\n"
        "if True:\n    import numpy\ndef f():\n    import scipy\n    from .rundir import write\n"
    )
    everything = imported(path)
    assert own(everything) == {"engine", "data", "config", "krr", "chain", "models", "rundir"}
    assert foreign(everything) == {"torch", "torchvision", "numpy", "scipy"}
    assert foreign(everything) - foreign(imported(path, only_at_the_top=True)) == {"scipy"}
    assert own(everything) - own(imported(path, only_at_the_top=True)) == {"rundir"}


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_its_place(name):
    assert name in NETWORK or in_kernel_wing(name), f"distill/{name}.py: say in {Path(__file__).name} where it stands"


@pytest.mark.parametrize("name", [name for name in NETWORK if name != "cli"])
def test_a_file_imports_only_files_above_it(name):
    above = set(NETWORK[: NETWORK.index(name)])
    assert own(imported(FILES[name])) <= above | MEETING.get(name, set())


def test_the_kernel_wing_stands_alone():
    for name in filter(in_kernel_wing, FILES):
        names = imported(FILES[name])
        assert not foreign(names) & {"torch", "torchvision"}, name
        assert all(in_kernel_wing(other) for other in own(names)), name


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_files_that_answer_at_once_import_no_torch(name):
    at_once, everything = foreign(imported(FILES[name], only_at_the_top=True)), foreign(imported(FILES[name]))
    assert not at_once & {"torch", "torchvision", "matplotlib", "sklearn", "PIL"}
    assert "torch" not in everything


def modules_after(program: str) -> set[str]:
    """The modules that a fresh Python has loaded after ``program``."""
    program = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{program}\nprint(chr(10) + ' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_after("import distill")
    assert not loaded & {"torch", "numpy", "distill.config"}


def test_a_report_and_a_bad_option_need_no_torch():
    loaded = modules_after("import distill.config, distill.rundir, distill.report, distill.cli")
    assert "distill.report" in loaded
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
