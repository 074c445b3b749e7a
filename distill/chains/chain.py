"""The chain: a teacher trained on the given labels, then students, each trained on the labels and the model before it.

Borup & Andersen, "Even your Teacher Needs Guidance", NeurIPS 2021, arXiv 2102.13088, section 5::

    teacher = train(given labels)
    for step in 1, 2, ...:
        student = train(alpha * given labels + (1 - alpha) * teacher(images))
        teacher = student

``Chain.run`` is this loop. ``student.train`` trains one model, resuming it if it was begun; ``estimated_alpha`` holds
Algorithm 1, for an alpha that is estimated.
"""

from functools import cached_property
from pathlib import Path

from distill.arms import TEACHER, Arm, Estimated, arm_name, prefixes
from distill.chains import estimated_alpha, student
from distill.chains.checkpoints import load_parameters
from distill.chains.session import Session
from distill.chains.student import Finished, ModelSpec
from distill.errors import ConfigError
from distill.files import sha256
from distill.store.results import Result, name_model
from distill.store.rundir import RunDir
from distill.training.listener import Listener


class Chain:
    """The chains of one seed, one for each arm. They share the session's images and the teacher."""

    def __init__(self, session: Session, rundir: RunDir, listener: Listener) -> None:
        self.session = session
        self.rundir = rundir
        self.listener = listener
        self.first_step = session.config.chain.first_step

    def run(self, arm: Arm = TEACHER) -> list[Result]:
        """Train one chain: the teacher, then students, each taught by the one before. Finished models are kept."""
        models = [self.teacher]
        for step, prefix in enumerate(prefixes(arm), start=self.first_step + 1):
            models.append(self.student(prefix, step, teacher=models[-1]))
        return [model.result for model in models]

    @cached_property
    def teacher(self) -> Finished:
        """The first model: trained on the given labels, or a given checkpoint. It does not depend on alpha."""
        spec = self.spec(TEACHER, self.first_step, teacher=None)
        if self.session.config.chain.teacher_ckpt is None:
            return student.train(self.session, spec, self.listener)
        return self._given_teacher(spec, Path(self.session.config.chain.teacher_ckpt))

    def student(self, prefix: Arm, step: int, teacher: Finished) -> Finished:
        """The student at the end of ``prefix``, taught by ``teacher``."""
        spec = self.spec(prefix, step, teacher)
        if isinstance(spec.target, Estimated):
            return estimated_alpha.train(self.session, spec, self.teacher, self.listener)
        return student.train(self.session, spec, self.listener)

    def spec(self, prefix: Arm, step: int, teacher: Finished | None) -> ModelSpec:
        """The specification of one model of an arm."""
        seed = self.session.seed
        name = arm_name(prefix)
        return ModelSpec(
            run=self.rundir.path,
            folder=self.rundir.model(seed, name, step),
            name=name_model(seed, name, step),
            arm=name,
            step=step,
            target=prefix[-1] if prefix else None,
            teacher=teacher,
        )

    def _given_teacher(self, spec: ModelSpec, file: Path) -> Finished:
        """The teacher from ``--teacher-ckpt``, copied into the run directory when the run begins."""
        if not spec.is_finished:
            model = self.session.new_model(spec.step)
            load_parameters(model, file)
            parent = {"path": str(file), "sha256": sha256(file)}
            student.finish(self.session, spec, self.session.place(model), [], parent, self.listener)
        teacher = Finished(self.session, spec.folder)
        if file.exists() and sha256(file) != teacher.parent.get("sha256"):
            raise ConfigError(f"{file} is not the file that this run began with; choose another --output")
        return teacher
