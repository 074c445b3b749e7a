"""The pages: their code runs, their links lead somewhere, and they name every option and column that there is."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distill.chains.model_training import EPOCH_COLUMNS
from distill.store.results import columns

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [
    ROOT / page
    for page in (
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "RELIABILITY.md",
        "benchmarks/README.md",
        "studies/README.md",
        "studies/targets.md",
    )
]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)
OF_OTHER_PROGRAMS = {  # of distill.features, tensorboard, torchrun and sbatch
    *("--of", "--weights", "--logdir"),
    *("--standalone", "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--requeue"),
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z_-]*[a-z]")


def text(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """The code blocks of a page: the HTML comment on the line above it ("" if there is none), language and code."""
    return [match.groups(default="") for match in BLOCK.finditer(text(page))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def program(*words: str, folder: Path = ROOT) -> str:
    """What a program of this checkout prints in another process. ``folder`` is its working directory."""
    settings = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "error"}
    run = subprocess.run([sys.executable, *words], cwd=folder, env=settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    """Python blocks run in the order of the page, with shared names, and so do commands marked ``<!-- run -->``.

    A block marked ``<!-- file NAME -->`` is written to that file. ``<!-- not run: REASON -->`` is skipped.
    """
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for mark, language, code in blocks(page):
        if mark.startswith("file "):
            Path(mark.removeprefix("file ")).write_text(code, encoding="utf-8")
        elif mark == "run":
            run_commands(code, tmp_path)
        elif language == "python" and not mark.startswith("not run: "):
            exec(compile(code, name(page), "exec"), names)


def run_commands(code: str, folder: Path) -> None:
    """Run the lines that begin with ``python`` or ``$ python``. Other lines, if any, are the output of the last one."""
    lines = [line for line in code.splitlines() if line]
    for line in lines:
        if not line.startswith(("$ python ", "python ")):
            continue
        _, script, *options = shlex.split(line.removeprefix("$ "), comments=True)
        printed = program(str(ROOT / script), *options, folder=folder)
    shown = [line for line in lines if not line.startswith(("$ ", "python "))]
    assert shown == [line for line in printed.splitlines() if line][: len(shown)]


def test_marks_are_known():
    marks = {mark.split(":")[0].split(" ")[0] for page in PAGES for mark, _, _ in blocks(page) if mark}
    assert marks <= {"run", "file", "not"}


def test_marked_commands_are_found():
    assert [name(page) for page in PAGES if any(mark == "run" for mark, _, _ in blocks(page))] == [
        "docs/data.md",
        "docs/kernel.md",
    ]


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=name)
def test_links_and_figures_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text(page))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_shows_the_quickstart_and_links_every_page():
    links = re.findall(r"\]\(([^)]+)\)", text("README.md"))
    assert "figures/quickstart.png" in links
    further = [f"docs/{link}" for link in re.findall(r"\]\(([^)/]+)\)", text("docs/architecture.md"))]
    assert [name(page) for page in PAGES[1:] if name(page) not in links + further] == []


def test_the_page_on_reliability_names_tests_that_exist():
    tests = re.findall(r"`(tests/[\w/.]+)[` ]", text("RELIABILITY.md"))
    assert len(tests) > 10
    assert [test for test in tests if not (ROOT / test).exists()] == []


def options_of(*program_words: str) -> set[str]:
    return set(OPTION.findall(program(*program_words, "--help")))


def test_options_page_names_every_option():
    assert set(OPTION.findall(text("docs/options.md"))) >= {
        option for option in options_of("self_distiller.py") if not option.startswith("--no-")
    } - {"--help"}


def test_pages_name_no_option_that_does_not_exist():
    known = options_of("self_distiller.py") | options_of("krr_toy.py") | OF_OTHER_PROGRAMS
    used = {(name(page), option.replace("_", "-")) for page in PAGES for option in OPTION.findall(text(page))}
    assert {(page, option) for page, option in used if option not in known} == set()


def test_output_page_names_columns_that_exist():
    page = text("docs/output.md")
    results, metrics = page.split("## Columns of metrics.csv")
    named = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in results.splitlines() if row.startswith("| `")]
    documented = [column for row in named for column in row]
    assert documented == [column for column in columns() if column in documented]  # a new metric needs no page
    named = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in metrics.splitlines() if row.startswith("| `")]
    assert [column for row in named for column in row] == list(EPOCH_COLUMNS)


def test_architecture_names_files_and_tables_that_exist():
    page = text("docs/architecture.md")
    files = set(re.findall(r"`([\w/]+\.py)`", page))
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).exists() and not (ROOT / "distill" / file).exists()] == []
    table = page.split("## To add X, edit Y")[1]
    for row in (line for line in table.splitlines() if line.startswith("| a")):
        code = "".join(text(f"distill/{file}") for file in re.findall(r"`([\w/]+\.py)`", row))
        names = re.findall(r"`([A-Z]\w+|make_executor|build)`", row)
        assert [identifier for identifier in names if identifier not in code] == [], row


def test_architecture_lists_every_package_and_light_module():
    page = text("docs/architecture.md")
    modules = {path.name for path in (ROOT / "distill").glob("*.py")}
    packages = {f"{path.parent.name}/" for path in (ROOT / "distill").glob("*/__init__.py")}
    assert [part for part in sorted(modules | packages) if f"`{part}`" not in page] == []
