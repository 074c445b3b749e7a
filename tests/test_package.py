"""What is installed: the wheel has every module and both programs, and the oldest allowed packages are one list."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tiny import ROOT, rows

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TINY_RUN = shlex.split("""
--dataset digits --train-size 40 --test-size 20 --resnet 8 --width 2 --max-epochs 1 --batch-size 20 --alpha 0.5
--distillation-steps 1 --device cpu --threads 1 --output
""")


def pip(*words) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources: setuptools leaves files where it builds."""
    pytest.importorskip("pip")
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "distill", sources / "distill", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, sources)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function: ``installed(program, *words)`` runs a program of an environment that holds nothing but the wheel.

    The packages that it needs are found where the tests find them. The working folder is outside the checkout.
    """
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(environment, clear=True)
    python = environment / "bin" / "python"
    pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "packages-of-the-tests.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *words) -> str:
        command = [str(environment / "bin" / program), *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


TEMPLATES = ROOT / "distill/pages/templates"


def test_the_wheel_has_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "distill").rglob("*.py")}
    templates = {f"distill/pages/templates/{path.name}" for path in TEMPLATES.iterdir()}
    assert names == modules | templates | {"distill/py.typed"}


def test_the_installed_package_is_the_wheels(installed):
    program = "import distill, sys; print(distill.__file__, sys.prefix, sep=chr(10))"
    file, environment = map(Path, installed("python", "-c", program).splitlines())
    assert environment in file.parents


@pytest.mark.slow
def test_the_installed_commands_run_outside_the_checkout(installed, tmp_path):
    assert "--distillation-steps" in installed("self-distiller", "--help")
    assert "usage" in installed("python", "-m", "distill.preview", "--help")
    installed("self-distiller", *TINY_RUN, tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run" / "results.csv")] == ["0", "1"]
    assert json.loads((tmp_path / "run/seed_1/step_0/result.json").read_text())["epochs"] == 1
    assert "alpha" in installed("krr-toy", "--no-figures")


def bounds(requirements: list[str]) -> dict[str, Version]:
    """The lowest allowed version by package; references to this project itself left out."""
    parsed = [Requirement(text) for text in requirements]
    for requirement in parsed:
        assert [each.operator for each in requirement.specifier] in ([">="], []), requirement
    return {
        requirement.name: Version(next(iter(requirement.specifier)).version)
        for requirement in parsed
        if requirement.specifier
    }


def test_the_oldest_packages_are_the_lower_bounds():
    optional = PROJECT["project"]["optional-dependencies"]
    lowest = bounds(PROJECT["project"]["dependencies"] + optional["test"])
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    named, _, others = text.partition("# Not named in pyproject.toml")
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", named, re.MULTILINE))
    assert {name: Version(version) for name, version in pinned.items()} == lowest
    assert not set(re.findall(r"^([\w-]+)==", others, re.MULTILINE)) & set(lowest)


def test_a_build_needs_the_setuptools_that_the_tests_install():
    (needed,) = PROJECT["build-system"]["requires"]
    assert needed in PROJECT["project"]["optional-dependencies"]["test"]
