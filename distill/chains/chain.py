"""The chain: a teacher trained on the given labels, then students, each trained on the labels and the model before it.

Borup & Andersen, "Even your Teacher Needs Guidance", NeurIPS 2021, arXiv 2102.13088, section 5::

    teacher = train(given labels)
    for step in 1, 2, ...:
        student = train(alpha * given labels + (1 - alpha) * teacher(images))
        teacher = student

``Chain.run`` is this loop. ``train_model`` trains or resumes one model. ``estimated_alpha`` holds Algorithm 1, which
estimates alpha.
"""

from functools import cached_property
from pathlib import Path

from distill.arms import TEACHER, Arm, Estimated, Student, students_of
from distill.chains import estimated_alpha
from distill.chains.checkpoints import load_parameters
from distill.chains.model_training import FinishedModel, ModelSpec, checked_model, finish_model, train_model
from distill.chains.session import Session
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
        """Train one chain: the teacher, then each student with the model before as teacher.

        Models that are finished on disk are not trained again.
        """
        model = self.teacher
        results = [model.result]
        for each in students_of(arm):
            model = self.student(each, teacher=model)  # its own teacher is no longer needed and leaves memory
            results.append(model.result)
        return results

    @cached_property
    def teacher(self) -> FinishedModel:
        """The first model: trained on the given labels, or a given checkpoint. It does not depend on alpha."""
        spec = self.spec(None, teacher=None)
        if self.session.config.chain.teacher_ckpt is None:
            return train_model(self.session, spec, self.listener)
        return self._given_teacher(spec, Path(self.session.config.chain.teacher_ckpt))

    def student(self, each: Student, teacher: FinishedModel) -> FinishedModel:
        """A student of an arm, trained with ``teacher``."""
        spec = self.spec(each, teacher)
        if isinstance(spec.target, Estimated):
            return estimated_alpha.train(self.session, spec, self.teacher, self.listener)
        return train_model(self.session, spec, self.listener)

    def spec(self, each: Student | None, teacher: FinishedModel | None) -> ModelSpec:
        """The specification of a student, or of the first teacher (None)."""
        seed = self.session.seed
        name = None if each is None else each.arm
        step = self.first_step + (0 if each is None else each.position)
        return ModelSpec(
            run=self.rundir.path,
            folder=self.rundir.model(seed, name, step),
            name=name_model(seed, name, step),
            arm=name,
            step=step,
            target=None if each is None else each.target,
            teacher=teacher,
        )

    def _given_teacher(self, spec: ModelSpec, file: Path) -> FinishedModel:
        """The teacher from ``--teacher-ckpt``, copied into the run directory when the run begins."""
        if not spec.is_finished:
            self.rundir.make_folder(spec.folder)
            model = self.session.new_model(spec.step)
            load_parameters(model, file)
            parent = {"path": str(file), "sha256": sha256(file)}
            finish_model(self.session, spec, self.session.place(model), [], parent, self.listener)
        teacher = checked_model(self.session, spec)
        if file.exists() and sha256(file) != teacher.parent.get("sha256"):
            raise ConfigError(
                f"{file} is not the file that this run began with and that {spec.folder} holds as model.pt: move it "
                "away, or choose another --output"
            )
        return teacher
