"""The report of a run: its tables, and its figures as files."""

from pathlib import Path
from typing import Any

from distill.arms import PROBE, arm_title
from distill.configfile import read_config
from distill.reporting.plots import FIGURES, Run, by_arm
from distill.reporting.statistics import spread
from distill.reporting.style import draw
from distill.reporting.tables import aligned
from distill.store.rundir import RunDir


def report(path: Path) -> str:
    """Draw a run's figures and return its tables; an empty string if no model is finished."""
    rundir = RunDir(path)
    if not rundir.write_results():
        return ""
    run = Run(read_config(path / "config.toml").chain, rundir.records())
    for name, figure in FIGURES.items():
        draw(path / name, figure, run)
    return "\n\n".join(filter(None, [table(run), estimates(run.records)]))


def table(run: Run) -> str:
    """Test accuracy, steps down and arms across: the mean over seeds, ± the sample standard deviation of several."""
    arms = by_arm(run)
    seeds = len({result.seed for result in run.results})
    rows = [["step", *(arm_title(arm).replace(" =", "") for arm in arms)]]
    for step in sorted({step for steps in arms.values() for step in steps}):
        rows.append([str(step), *(_cell(steps.get(step), seeds) for steps in arms.values())])
    over = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    return f"Test accuracy{over} (step {run.chain.first_step} is the teacher)\n{aligned(rows)}"


def _cell(values: list[float] | None, seeds: int) -> str:
    if not values:
        return "-"
    mean, deviation = spread(values)
    if len(values) > 1:
        return f"{mean:.4f} ± {deviation:.4f}"
    return f"{mean:.4f}" + " " * len(" ± 0.0000") if seeds > 1 else f"{mean:.4f}"


def estimates(records: list[dict[str, Any]]) -> str:
    """The estimated alphas and their outcomes, a line per seed and step; "" if none was estimated.

    ``records`` are the contents of result.json.
    """
    models = {(record["seed"], record["arm"], record["step"]): record for record in records}
    rows = [["seed", "step", "arm", "alpha*", "trained with", "probe", "predicted", "student", "probe's", "student's"]]
    for record in records:
        if "auto" in record:
            # The user may have deleted the probe.
            probe = models.get((record["seed"], f"{record['arm']}{PROBE}", record["step"]))
            rows.append(_estimate_row(record, probe))
    if len(rows) == 1:
        return ""
    heading = "Estimated alpha; held-out Brier scores: probe (alpha 0), predicted, student; test accuracies"
    return f"{heading}\n{aligned(rows)}"


def _estimate_row(record: dict[str, Any], probe: dict[str, Any] | None) -> list[str]:
    auto = record["auto"]
    star = "any"
    if auto["alpha_star"] is not None:
        star = f"{auto['alpha_star']:.3f} ± {auto['standard_error']:.3f}"
    return [
        *(str(record[name]) for name in ("seed", "step", "arm")),
        star,
        "the probe" if auto["takes_probe"] else f"{auto['alpha']:.3f}",
        *(f"{auto[name]:.4f}" for name in ("probe_val_brier", "predicted_val_brier", "val_brier")),
        *("-" if model is None else f"{model['test_acc']:.4f}" for model in (probe, record)),
    ]
