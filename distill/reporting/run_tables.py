"""What a run shows in words and tables: the best arm and step, gains, estimated alphas."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from distill.arms import PROBE, arm_title
from distill.errors import ConfigError, one_line
from distill.pages.tables import FORMATS, Table
from distill.reporting.results import Gain, RunResults
from distill.reporting.statistics import LEVEL, Difference

BEGINS = {"latex": "%", "markdown": "##", "csv": "#"}  # of a line that names a run


def all_formatted(runs: Sequence[RunResults], kind: str) -> str:
    """The tables of runs in a format of ``FORMATS``, each of several under a line with its folder."""
    texts = [formatted(run, kind) for run in runs]
    if len(runs) == 1:
        return texts[0]
    names = [f"{BEGINS[kind]} {one_line(str(run.path))}" for run in runs]
    return "\n\n".join(f"{name}\n\n{text}" for name, text in zip(names, texts, strict=True))


def formatted(run: RunResults, kind: str) -> str:
    """The tables of a run in a format of ``FORMATS``. Raises ConfigError if no model is finished."""
    if not run:
        raise ConfigError(f"{run.path}: no model is finished yet")
    tables = [run.table(), gains_table(run.paired()), targets(run), estimates(run.records)]
    return "\n\n".join(FORMATS[kind](table) for table in tables if table.rows)


def answer(run: RunResults) -> list[str]:
    """Two sentences: the arm and step that the held-out images choose, and how much test accuracy it gains.

    Without held-out images the second is on the largest gain at the last step, corrected for the number of arms.
    """
    if run.no_student:
        return [run.no_student]
    try:
        best = run.best()
    except ConfigError as error:
        if run.teacher not in run.records_of:
            return [f"No arm and step can be chosen: {error}"]
        none = "No images were held out (--val-size), so no arm and step can be chosen"
        gains = run.paired(step=max((result.step for result in run), default=0))
        return [none, *([_largest(gains)] if gains else [])]
    line = f"Best by held-out images: {best.name} (held-out accuracy {best.val_acc:.4f})"
    if best.key == run.teacher:
        return [line, "No gain over the teacher: no student is better on the held-out images"]
    gain = run.difference("test_acc", best.key, run.teacher)
    return [line] if gain is None else [line, f"Gain over the teacher: {format_gain(gain, gain.p)}"]


def _largest(gains: list[Gain]) -> str:
    """The largest gain of the arms at one step."""
    gain = max(gains, key=lambda gain: gain.difference.mean)
    if len(gains) == 1:
        return f"Gain of {gain.name} over the teacher: {format_gain(gain.difference, gain.p_holm)}"
    of = f"Largest gain over the teacher of {len(gains)} arms at step {gain.step}: {arm_title(gain.arm)}"
    return f"{of}, {format_gain(gain.difference, gain.p_holm, len(gains))}"


def format_gain(gain: Difference, p: float, arms: int = 1) -> str:
    """``+0.1473, 95 % interval +0.0642 to +0.2305 (t, 3 seeds)``, and whether it is beyond noise.

    ``p`` is the p-value, corrected by Holm's method if there were several ``arms`` to choose from.
    """
    if not gain.has_interval:
        return f"{gain} ({gain.method})"
    corrected = f", p = {p:.2g} corrected for {arms} arms by Holm's method" if arms > 1 else ""
    noise = "" if p < 1 - LEVEL else "; no gain beyond noise"
    return f"{gain} ({gain.method}{corrected}){noise}"


def gains_table(gains: list[Gain], metric: str = "test accuracy") -> Table:
    """Paired gains with their intervals, and p-values corrected by Holm's method."""
    methods = sorted({gain.difference.method for gain in gains})
    many = f"; p corrected for {len(gains)} comparisons by Holm's method" if len(gains) > 1 else ""
    rows = []
    for gain in gains:
        found = gain.difference
        ends = [value if found.has_interval else None for value in (found.low, found.high, gain.p_holm)]
        rows.append([arm_title(gain.arm), gain.step, found.mean, *ends])
    header = ["arm", "step", "change", "95 % from", "to", "p"]
    return Table(f"Change of the {metric} from the teacher, paired by seed ({'; '.join(methods)}{many})", header, rows)


def targets(run: RunResults) -> Table:
    """What the targets of other kinds than soft were worth, a row per arm and step, means over seeds."""
    rows: list[list[Any]] = []
    for (arm, step), records in run.records_of.items():
        values = [record["target"] for record in records if "target" in record]
        if not values or (arm or "").endswith(PROBE):
            continue
        kept = [value["kept"] for value in values if "kept" in value]
        images = round(fmean(kept)) if kept else None
        rows.append([arm_title(arm), step, fmean(value["right"] for value in values), images])
    title = "Share of right targets (top2: one of the two is right), and the number of training images if not all"
    return Table(title, ["arm", "step", "right", "images"], rows)


def estimates(records: list[dict[str, Any]]) -> Table:
    """The estimated alphas and their outcomes, a row per seed and step.

    ``records`` are the contents of result.json.
    """
    models = {(record["seed"], record["arm"], record["step"]): record for record in records}
    header = ["seed", "step", "arm", "alpha*", "trained with", "probe", "predicted", "student", "probe's", "student's"]
    rows = []
    for record in records:
        auto = record.get("auto")
        if auto is None:
            continue
        probe = models.get((record["seed"], f"{record['arm']}{PROBE}", record["step"]), {})  # it may have been deleted
        star = "any"
        if auto["alpha_star"] is not None:
            star = f"{auto['alpha_star']:.3f} ± {auto['standard_error']:.3f}"
        alpha = "the probe" if auto["takes_probe"] else f"{auto['alpha']:.3f}"
        scores = [auto[name] for name in ("probe_val_brier", "predicted_val_brier", "val_brier")]
        model = [record["seed"], record["step"], arm_title(record["arm"])]
        rows.append([*model, star, alpha, *scores, probe.get("test_acc"), record["test_acc"]])
    heading = "Estimated alpha; held-out Brier scores: probe (alpha 0), predicted, student; test accuracies"
    return Table(heading, header, rows)
