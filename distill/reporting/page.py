"""report.html: the page of one run, or of several side by side. It is self-contained and works without JavaScript."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.arms import arm_name
from distill.config import DataConfig
from distill.errors import ConfigError, one_line
from distill.files import write_derived
from distill.noise import NOISE_KINDS
from distill.pages.html import Part, View, image, render, render_page, svg
from distill.pages.style import rendered
from distill.pages.tables import Table, format_count, shaded
from distill.program import complain
from distill.reporting import comparison, page_tables, plots
from distill.reporting.results import Key, RunResults, name_key
from distill.reporting.run_tables import answer, estimates, gains_table, targets
from distill.reporting.status import STATES, States, model_states
from distill.store.rundir import RunDir

SCORES = ("test_acc", "test_nll", "test_brier", "test_ece")
NOISE = ("memorised", "recovered", "clean_acc")
LARGEST_FORECAST = 200_000  # bytes of a preview.svg that the page holds
ACCURACY = "Test accuracy against step and, if there are students, their gains over the teacher of the same seed"


def write_page(runs: Sequence[RunResults], file: Path) -> bool:
    """Write the page of runs. A failure is a note on standard error and ends no run; returns whether it was written."""
    try:
        return write_derived(file, page(runs, file.parent))
    except Exception as error:
        complain(f"note: no page {one_line(str(file))} ({type(error).__name__}: {one_line(error)})")
        return False


def page(runs: Sequence[RunResults], base: Path) -> str:
    """The page of runs, as HTML; ``base`` is the folder that its links begin in. Raises ConfigError."""
    views = [
        View(name, sentence(run), answer(run) if run else [], parts(run, base, i))
        for i, (run, name) in enumerate(zip(runs, comparison.names(runs), strict=True))
    ]
    title = str(runs[0].path) if len(runs) == 1 else f"{len(runs)} runs side by side"
    return render_page(title, views, overview(runs) if len(runs) > 1 else None)


def summary(run: RunResults) -> str:
    """The table of a run and its accuracy figure as HTML that needs no style."""
    if not run:
        return render("table.html", table=page_tables.options_table([run]))
    drawing, _ = image(rendered(plots.accuracy_figure(run), "svg"), ACCURACY)
    return f"{render('table.html', table=run.table())}{drawing}"


def sentence(run: RunResults) -> str:
    """What was run, in one sentence."""
    config = run.config
    data = config.data
    total = sum(model.folder.name != "probe" for model in RunDir(run.path).models(config))
    finished = sum(result.arm is None or not result.arm.endswith("probe") for result in run)
    size = "all" if data.train_size is None else f"{data.train_size:,}"
    held = f", {data.val_size:,} images held out" if data.val_size else ""
    chain = config.chain
    what = "alpha" if chain.target == ("soft",) else "targets"
    steps = f"{format_count(chain.distillation_steps, 'student')} each"
    arms = ", ".join(str(arm_name(arm)) for arm in run.arms if arm)
    seeds = " ".join(map(str, chain.seed))
    return (
        f"{config.model.name} on {data.dataset} ({size} training images{_noise_words(data)}{held}): "
        f"{f'{what} {arms} with {steps}' if arms else 'the teacher alone'}, seed {seeds}, "
        f"{config.train.epochs} epochs per model; {finished} of {total} models are finished."
    )


def _noise_words(data: DataConfig) -> str:
    """Such as ``, 40 % symmetric label noise``."""
    kind = NOISE_KINDS[data.label_noise_kind]
    needs = f" with {kind.needs.replace('_', ' ')} {getattr(data, kind.needs)}" if kind.needs else ""
    rate = "" if kind.sets_rate else f"{100 * data.label_noise:.3g} % "
    return f", {rate}{data.label_noise_kind} label noise{needs}" if data.corrupts else ""


def chosen(run: RunResults) -> tuple[Key | None, str]:
    """The arm and step that the page looks at closely, and how it was chosen: None without a student."""
    if run.no_student:
        return None, run.no_student
    try:
        best = run.best().key
    except ConfigError as error:
        if run.teacher not in run.records_of:
            return None, str(error)
        last = max((result.step for result in run if result.arm is not None), default=0)
        gains = run.paired(step=last)
        if not gains:
            return None, "no student has a finished teacher of its seed"
        gain = max(gains, key=lambda gain: gain.difference.mean)
        return (gain.arm, gain.step), "no images were held out: the largest gain on the test images at the last step"
    if best != run.teacher:
        return best, "chosen by the held-out images"
    gains = run.paired("val_acc")
    student = max(gains, key=lambda gain: gain.difference.mean).key if gains else None
    return student, "the held-out images choose the teacher; this is their best student"


def missing(run: RunResults, states: States) -> list[str]:
    """The numbers of models that are not finished, by their state, and the records that cannot be read."""
    found = [state for state, _ in states.values()]
    counts = [f"{found.count(state):,} {state}" for state in STATES if state in found]
    unfinished = [f"{format_count(len(found), 'model')} not finished: {', '.join(counts)}"] if found else []
    return [*unfinished, *run.problems]


def parts(run: RunResults, base: Path, number: int) -> list[Part]:
    """The parts of a run's page, from top to bottom; those without data say why."""
    states = model_states(run.config)
    lines = missing(run, states)
    found = [Part("What is missing", lines=lines)] if lines else []
    if run:
        found += [*_scores(run, number), *_confusions(run)]
    found.append(Part("Models", tables=[page_tables.models_table(run, states, base)], sorts=True))
    if run:
        found += [*_forecast(run), Part("Cost by step", tables=[page_tables.cost_table(run)], sorts=True)]
    return [*found, origin([run], run.path)]


def _scores(run: RunResults, number: int) -> list[Part]:
    """Everything that is measured, but for the classes; ``number`` makes ids unique in the page."""

    def drawn(figure: Any, label: str, name: str) -> list[tuple[Any, str]]:
        return [] if figure is None else [svg(figure, label, f"{name}{number}")]

    gains = run.paired()
    band = ", with a band of one standard deviation" if len(run.seeds) > 1 else ""
    scores = f"Accuracy, NLL, Brier score and ECE on the test images against step{band}"
    curves = drawn(
        plots.curves_figure(run), "Learning curves, means over seeds: a column per arm, a line per step", "c"
    )
    bins = "Reliability diagrams: accuracy against confidence, and the share of the test images in each bin"
    noise = "Shares of the wrong labels that are memorised and recovered, and accuracy on the right ones"
    answer = drawn(plots.accuracy_figure(run), ACCURACY, "a")
    found = [
        Part("Gain over the teacher", figures=answer, tables=[gains_table(gains)] if gains else [], sorts=True),
        Part("Scores against step", figures=drawn(plots.diagnostics_figure(run, SCORES, 2), scores, "s")),
        Part("Alpha and step", tables=[shaded(run.table(index="arm", columns="step"))], sorts=True),
        Part("Learning curves", "" if curves else "No metrics.csv can be read.", figures=curves),
    ]
    if any("reliability" in record for record in run.records):
        found.append(Part("Calibration", figures=drawn(plots.reliability_figure(run), bins, "r")))
    for title, table in (("Targets", targets(run)), ("Estimated alphas", estimates(run.records))):
        if table.rows:
            found.append(Part(title, tables=[table], sorts=True))
    if any(result.memorised is not None for result in run):
        figures = drawn(plots.diagnostics_figure(run, NOISE, 3), noise, "n")
        found.append(Part("Wrong labels", "Of the training images, not augmented.", figures=figures))
    return found


def _confusions(run: RunResults) -> list[Part]:
    """The confusion matrices of the teacher and of the chosen model, if any, and the accuracy by class."""
    model, how = chosen(run)
    classes = run.records[0]["classes"]
    keys = {"teacher": run.teacher} if model is None else {"teacher": run.teacher, name_key(model): model}
    matrices = {name: page_tables.confusion(run, key) for name, key in keys.items()}
    found = {name: matrix for name, matrix in matrices.items() if matrix is not None and len(matrix) == len(classes)}
    if len(found) < len(keys):
        return [Part("Classes", "Not shown: test predictions of these models are missing, as in an older version.")]
    tables = [page_tables.confusion_table(matrix, classes, name) for name, matrix in found.items()]
    note = f"{' beside the '.join(reversed(found))}, over all seeds ({how})."
    return [Part("Classes", note, tables=[*tables, page_tables.class_table(found, classes)], sorts=True)]


def _forecast(run: RunResults) -> list[Part]:
    for seed in run.seeds:
        file = run.path / f"seed_{seed}" / "preview.svg"
        if file.is_file() and file.stat().st_size <= LARGEST_FORECAST:
            label = f"Forecast of the kernel twins for seed {seed} and, in the last row, the outcome beside it"
            if len(run.seeds) > 1:
                label += "; the other seeds' forecasts, if drawn, are in their folders (preview.svg)"
            return [Part("Forecast", figures=[image(file.read_bytes(), label)])]
    return []


def origin(runs: Sequence[RunResults], path: Path) -> Part:
    """Where the run in a folder, or the runs of the study there, came from, and how to repeat it."""
    lines = [f"SHA-256 of the data: {each}" for each in dict.fromkeys(map(_data, runs))]
    teachers = [record["parent"] for run in runs for record in run.records if record["arm"] is None]
    lines += sorted({f"Given teacher: {each['path']}, SHA-256 {each['sha256']}" for each in teachers if each})
    repeat = shlex.join(["python", "self_distiller.py", "--config", str(path / "config.toml"), "--output", "NEW"])
    tables = [page_tables.processes_table(runs[-1]), page_tables.options_table(runs)] if runs else []
    return Part("Origin", "This command repeats it in the folder NEW:", code=repeat, tables=tables, lines=lines)


def _data(run: RunResults) -> str:
    try:
        return RunDir(run.path).recorded_data() or "not recorded"
    except (OSError, ConfigError):
        return "damaged"


def overview(runs: Sequence[RunResults]) -> Part:
    """Several runs side by side: the answer of each, and their gains in one figure."""
    label = "Change from the teacher of the same seed against step, with 95 % intervals: a column per run"
    names = comparison.names(runs)
    answers = [[*(answer(run) if run else ["no model is finished yet"]), ""] for run in runs]
    rows = [[name, *each[:2]] for name, each in zip(names, answers, strict=True)]
    finished = [run for run in runs if run]
    drawn = [svg(comparison.gains_figure(finished), label, "o")] if finished else []
    return Part(
        "Side by side", figures=drawn, tables=[Table("Best of each run", ["run", "arm and step", "gain"], rows)]
    )
