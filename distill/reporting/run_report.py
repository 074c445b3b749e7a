"""A run directory as tables and figures. Imports no torch."""

from pathlib import Path

from distill.config import ChainConfig
from distill.configfile import read_config
from distill.files import write_atomically
from distill.reporting.plots import accuracy_figure, by_arm, diagnostics_figure, reliability_figure, spread, title
from distill.store.results import Result
from distill.store.rundir import RunDir


def table(results: list[Result], chain: ChainConfig) -> str:
    """Steps down, arms across: the mean over seeds, ± the sample standard deviation where there are several."""
    arms = by_arm(results, chain)
    seeds = len({result.seed for result in results})
    cells = [["step", *(title(arm).replace(" =", "") for arm in arms)]]
    for step in sorted({step for steps in arms.values() for step in steps}):
        cells.append([str(step), *(_cell(steps.get(step), seeds) for steps in arms.values())])
    over = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    return "\n".join([f"Test accuracy{over} (step {chain.first_step} is the teacher)", aligned(cells)])


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells as lines, each column flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(values: list[float] | None, seeds: int) -> str:
    if not values:
        return "-"
    mean, sd = spread(values)
    return f"{mean:.4f} ± {sd:.4f}" if len(values) > 1 else f"{mean:.4f}" + " " * (9 if seeds > 1 else 0)


def estimates(records: list[dict]) -> str:
    """The weights that were estimated, and what came of them, a line per seed and step; "" where there are none.

    ``records`` are the contents of result.json.
    """
    probes = {(record["seed"], record["arm"], record["step"]): record for record in records}
    cells = [["seed", "step", "arm", "alpha*", "trained with", "probe", "predicted", "student", "probe's", "student's"]]
    for record in records:
        if (auto := record.get("auto")) is None:
            continue
        star = "any" if auto["alpha_star"] is None else f"{auto['alpha_star']:.3f} ± {auto['standard_error']:.3f}"
        probe = probes.get((record["seed"], f"{record['arm']} probe", record["step"]))  # a user may have deleted it
        cells.append(
            [
                *(str(record[name]) for name in ("seed", "step", "arm")),
                star,
                "the probe" if auto["takes_probe"] else f"{auto['alpha']:.3f}",
                *(f"{auto[name]:.4f}" for name in ("probe_val_brier", "predicted_val_brier", "val_brier")),
                *("-" if model is None else f"{model['test_acc']:.4f}" for model in (probe, record)),
            ]
        )
    if len(cells) == 1:
        return ""
    heading = (
        "Estimated alpha; held-out Brier scores of the probe (alpha 0), predicted, and of the student; test accuracies"
    )
    return "\n".join([heading, aligned(cells)])


def draw(results: list[Result], records: list[dict], chain: ChainConfig, folder: Path) -> None:
    """Leave accuracy, diagnostics and reliability as .png and .svg."""
    figures = {
        "accuracy": accuracy_figure(results, chain),
        "diagnostics": diagnostics_figure(results, chain),
        "reliability": reliability_figure(records, chain),
    }
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            write_atomically(
                folder / f"{name}.{kind}",
                lambda file, figure=figure, kind=kind: figure.savefig(file, format=kind, dpi=150),
            )


def report(path: Path) -> str:
    """Draw a run's figures and return its tables; an empty string where no model is finished."""
    rundir = RunDir(path)
    records = rundir.records()
    results = rundir.write_results()
    if not results:
        return ""
    chain = read_config(path / "config.toml").chain
    draw(results, records, chain, path)
    return "\n\n".join(filter(None, [table(results, chain), estimates(records)]))
