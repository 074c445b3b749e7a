"""Algorithm 1 of the paper: estimate a step's alpha on held-out images.

A student's predictions are nearly affine in its alpha: alpha * f + (1 - alpha) * g. Here f is the teacher of step 0 and
g the *probe*, this step's student trained with alpha = 0. The alpha of least squared error on held-out images is then a
projection (Borup & Andersen 2021, arXiv 2102.13088; exact for kernel ridge regression). It costs one more training per
step instead of a grid. ``kernel.mixing.best_alpha`` has the formula.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.arms import PROBE, Estimated, Fixed, target
from distill.chains.model_training import STATE, FinishedModel, ModelSpec, metrics_record, train_model
from distill.chains.session import Session
from distill.files import open_file, write_atomically
from distill.kernel.mixing import best_alpha
from distill.randomness import generator
from distill.records import DamagedRecordError, read_json, write_json
from distill.store import claims
from distill.store.events import EVENTS, write_model_events
from distill.store.predictions import PREDICTIONS
from distill.store.results import ESTIMATE, check_estimate, name_model, read_record
from distill.store.rundir import RunDir
from distill.training.listener import Listener

RESAMPLES = 1000  # of the bootstrap
ROUNDING = 16 * float(np.finfo(np.float32).eps)  # float32 predictions closer than this differ by rounding alone

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """An estimated alpha. Errors are Brier scores on the held-out images: mean of |p - one_hot|^2, in [0, 2]."""

    alpha_star: float | None  # of least error, not clipped; None if f and g agree to rounding
    standard_error: float | None  # of alpha_star, over resampled held-out images
    alpha: float  # what the student is trained with: alpha_star clipped to the range, or 0 if the probe is taken
    takes_probe: bool  # the probe becomes the student: alpha_star is 0 within its error, or alpha has no effect
    probe_val_brier: float
    predicted_val_brier: float  # of alpha * f + (1 - alpha) * g

    @classmethod
    def of(cls, content: Mapping[str, Any], file: Path) -> "Choice":
        """The estimate among the entries of ``file``. Raises DamagedRecordError."""
        check_estimate(content, file)
        return cls(**{name: content[name] for name in ESTIMATE})


def choose(
    first: Array,
    probe: Array,
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    within: tuple[float, ...] = (0.0, 1.0),
) -> Choice:
    """Alpha for a student, from held-out probabilities f and g (n, classes) float64 and true labels (n,) int64.

    It is clipped to ``within``, two numbers, of which the first is at most 0.
    """
    truth = np.eye(first.shape[1])[labels]
    best, error = _estimate(first, probe, truth, rng)
    alpha = 0.0 if best is None else min(max(best, within[0]), within[1])
    takes_probe = best is None or error is None or alpha == 0 or abs(best) <= error
    alpha = 0.0 if takes_probe else alpha

    def brier(p: Array) -> float:
        return float(np.mean(((p - truth) ** 2).sum(1)))

    return Choice(best, error, alpha, takes_probe, brier(probe), brier(alpha * first + (1 - alpha) * probe))


def _estimate(
    first: Array, probe: Array, truth: Array, rng: np.random.Generator
) -> tuple[float, float] | tuple[None, None]:
    """alpha_star and its standard error, or None twice."""
    e = first - probe
    if np.linalg.norm(e) <= ROUNDING * np.linalg.norm(first):
        return None, None
    best = best_alpha(first, probe, truth)
    # alpha* = sum_i <t_i - g_i, e_i> / sum_i <e_i, e_i>: resampling images resamples the terms of both sums.
    numerators = ((truth - probe) * e).sum(1)
    denominators = (e * e).sum(1)
    n = len(truth)
    resampled = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, n, n)
        denominator = denominators[rows].sum()
        if denominator > 0:
            resampled.append(numerators[rows].sum() / denominator)
    return best, float(np.std(resampled))


def train(session: Session, spec: ModelSpec, first: FinishedModel, listener: Listener) -> FinishedModel:
    """Train the student of a step whose alpha is estimated. ``first`` is the teacher of step 0.

    First the probe is trained; then alpha is chosen and written to choice.json, so that a resumed student keeps it;
    then the student is trained, unless the probe becomes the student.
    """
    choice_file = spec.folder / "choice.json"
    probe_spec = _probe(session, spec)
    if spec.is_finished:
        choice_file.unlink(missing_ok=True)  # the process may have died between the two writes
        train_model(session, probe_spec, listener)  # only if it was lost
        return train_model(session, spec, listener)
    if not probe_spec.is_finished:
        # These belong to a probe that was deleted.
        choice_file.unlink(missing_ok=True)
        (spec.folder / STATE).unlink(missing_ok=True)
    probe = train_model(session, probe_spec, listener)
    if not choice_file.exists():
        choice = _choose(session, spec, first, probe, listener)
        claims.check()
        write_json(choice_file, asdict(choice) | {"probe_sha256": probe.sha256})
    choice = _read_choice(choice_file, probe.sha256)
    if choice.takes_probe:
        _take_probe(probe, spec, choice, listener)
    else:
        train_model(session, replace(spec, target=target(choice.alpha, _kind(spec))), listener, asdict(choice))
    choice_file.unlink()
    return FinishedModel(session, spec.folder)


def _probe(session: Session, spec: ModelSpec) -> ModelSpec:
    """The specification of a step's probe: the same student with alpha = 0."""
    arm = f"{spec.arm}{PROBE}"
    return replace(
        spec,
        folder=spec.folder / "probe",
        name=name_model(session.seed, arm, spec.step),
        arm=arm,
        target=target(0.0, _kind(spec)),
    )


def _kind(spec: ModelSpec) -> type[Fixed]:
    """The kind of a student's target whose alpha is estimated."""
    assert isinstance(spec.target, Estimated)
    return spec.target.of


def _choose(
    session: Session, spec: ModelSpec, first: FinishedModel, probe: FinishedModel, listener: Listener
) -> Choice:
    """Alpha of a step, from the predictions of its probe and of the first teacher on the held-out images."""
    assert session.val is not None, "the configuration holds images out"
    rng = generator(session.seed, "bootstrap", spec.step)
    labels = session.val.labels.cpu().numpy()
    choice = choose(
        first.val_logits.double().softmax(1).numpy(),
        probe.val_logits.double().softmax(1).numpy(),
        labels,
        rng,
        session.config.chain.alpha_range,
    )
    listener.note(f"{spec.name}: {format_choice(choice, len(labels))}")
    return choice


def format_choice(choice: Choice, images: int) -> str:
    """One line that describes an estimate made from ``images`` held-out images."""
    if choice.alpha_star is None:
        return "teacher and probe agree to rounding, so alpha has no effect; the probe is taken"
    outcome = "the probe (alpha 0) is taken" if choice.takes_probe else f"trained with {choice.alpha:.4f}"
    return f"alpha* = {choice.alpha_star:.4f} ± {choice.standard_error:.4f} on {images:,} held-out images: {outcome}"


def _take_probe(probe: FinishedModel, spec: ModelSpec, choice: Choice, listener: Listener) -> None:
    """Make a probe the student of its step: the same parameters and metrics, without another training."""
    claims.check()
    RunDir(spec.run).make_folder(spec.folder)
    for name in ("model.pt", PREDICTIONS):
        if (probe.folder / name).exists():  # an older version kept no predictions
            with open_file(probe.folder / name) as file:
                write_atomically(spec.folder / name, file.read())
    result = replace(probe.result, arm=spec.arm, epochs=0, seconds=0.0)
    record: dict[str, Any] = read_record(probe.folder) | result.row() | metrics_record([])
    record["auto"] = asdict(choice) | {"val_brier": result.val_brier}
    RunDir(spec.run).write_result(spec.folder, record)
    if (probe.folder / EVENTS).exists():
        write_model_events(RunDir(spec.run), spec.folder, [], read_record(spec.folder))
    listener.end_model(result)


def _read_choice(file: Path, probe_sha256: str) -> Choice:
    """An estimate that was written down. Raises ConfigError if the file is damaged, or is of another probe."""
    try:
        content = read_json(file)
        if content.pop("probe_sha256", probe_sha256) != probe_sha256:
            raise DamagedRecordError(f"{file} is of another probe")
        return Choice.of(content, file)
    except DamagedRecordError as error:
        raise DamagedRecordError(f"{error}; delete it to estimate alpha again") from None
