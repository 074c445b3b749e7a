"""Training of one model, epoch by epoch.

An epoch is processed in chunks of mini-batches (``batches``). The teacher, in eval mode, predicts a whole chunk at
once. Metrics are read from the device at the end of an epoch, and about once a second for a progress bar; nothing else
waits for the device.
Several ranks (``ranks``) compute a share of each batch each.
On a CUDA device the updates on a chunk's whole batches are replayed as a CUDA graph (``cuda_graph``).
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from distill.arms import Fixed
from distill.config import TrainConfig
from distill.errors import one_line
from distill.training import augment, optim
from distill.training.batches import Batch, ImageStore, chunk_size, chunks
from distill.training.cuda_graph import GRAPHS, CapturedUpdates
from distill.training.device import autocast, place
from distill.training.listener import Listener
from distill.training.objective import Objective, one_hot, smoothed
from distill.training.optim import learning_rate, make_optimizer, updates_per_epoch
from distill.training.predict import soft_targets
from distill.training.ranks import ALONE, Ranks, Share
from distill.training.sync_batchnorm import synchronise


class NotFiniteLossError(ArithmeticError):
    """A loss, or a parameter after the last update, that is infinite or not a number.

    ``update`` counts from 1 within the epoch; ``advice`` says what to try.
    """

    def __init__(self, update: int, train: TrainConfig, what: str = "the loss is not finite at update") -> None:
        super().__init__(f"{what} {update}")
        self.update = update
        self.advice = "try a smaller --lr"
        if train.precision == "bf16":
            self.advice += ", or --precision fp32 (on some processors torch's bf16 convolutions give NaN gradients)"


class Trainer:
    """A model in training: its parameters, its optimiser and the number of finished epochs."""

    def __init__(self, model: nn.Module, train: TrainConfig, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.model = place(model, train, device)
        if train.sync_batchnorm:
            synchronise(self.model, ranks)
        self.forward = torch.compile(self.model, dynamic=False) if train.compile else self.model
        self.train = train
        self.device = device
        self.ranks = ranks
        self.optimizer = make_optimizer(self.model, train)
        self.parameters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.epochs = 0
        self.lr = train.lr  # of the last update
        self.rates_on_device = GRAPHS.can_capture(device)
        # Updates run eagerly with an average, whose decay a replayed graph would not change, and on several ranks.
        self.captures = self.rates_on_device and train.graph and train.ema is None and ranks.size == 1
        self.average = None if train.ema is None else copy.deepcopy(self.model).requires_grad_(False).eval()
        self.updates = 0  # that the average has seen
        self.captured: tuple[Objective, CapturedUpdates] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain numbers, which any device can read with ``weights_only=True``."""
        optimizer = self.optimizer.state_dict()
        if self.rates_on_device:  # otherwise they are plain numbers already
            optimizer["param_groups"] = [group | {"lr": self.lr} for group in optimizer["param_groups"]]
        state = {"model": self.model.state_dict(), "optimizer": optimizer, "epochs": self.epochs}
        if self.average is not None:
            state |= {"average": self.average.state_dict(), "updates": self.updates}
        return state

    @property
    def kept(self) -> nn.Module:
        """The model to evaluate and to keep: with ``ema`` the average."""
        return self.model if self.average is None else self.average

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a result of ``state_dict``, made on this device or another."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Fused kernels ignore strides, so moments must have their parameter's memory layout.
        for p, held in self.optimizer.state.items():
            for name, value in held.items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                    held[name] = torch.empty_like(p).copy_(value)
        self.epochs = state["epochs"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.updates = state["updates"]

    def epoch(
        self,
        store: ImageStore,
        plan: augment.Plan,
        classes: int,
        teacher: nn.Module | None,
        target: Fixed,
        listener: Listener,
    ) -> dict[str, float | None]:
        """Train one epoch on ``alpha * given labels + (1 - alpha) * target.teacher_target(teacher)``.

        Without a teacher, the given labels alone are the target. Returns the metrics of ``EpochSums.read``. On several
        ranks, all call this with the same arguments. Raises NotFiniteLossError.
        """
        batch_size = self.train.batch_size
        updates = updates_per_epoch(len(plan), batch_size)
        objective = Objective(self.train.loss, self.train.temperature, target.alpha)
        sums = EpochSums(objective, self.train, self.device, self.ranks)
        rates = self._learning_rates(updates)
        self.ranks.copy(self.model)
        self.model.train()
        for share in self.ranks.shares(plan[: updates * batch_size], batch_size):
            size = chunk_size(store, share.size)
            for images, labels in chunks(store, share.plan, size):
                soft = soft_targets(teacher, images, self.train)
                given = smoothed(one_hot(labels, classes), self.train.label_smoothing)
                chunk = Batch(images, given, None if soft is None else target.teacher_target(soft))
                logits, regs = self._train_on(chunk, objective, rates[sums.updates :], share, size, listener)
                sums.add(logits, labels, chunk, regs, share)
                listener.end_chunk(sums)
        self.epochs += 1
        sums.add_up(min(len(plan), updates * batch_size))
        metrics = sums.read()
        # A gradient that is not finite shows in the next update's loss; that of the last one only in the parameters.
        if not torch.stack(torch._foreach_norm(self.parameters)).isfinite().all():
            raise NotFiniteLossError(sums.updates, self.train, "a parameter is not finite after update")
        return metrics

    def _learning_rates(self, updates: int) -> Any:
        """The epoch's learning rates: floats, or on a CUDA device a float32 tensor (updates,) on it."""
        rates = [learning_rate(self.train, self.epochs * updates + u, updates) for u in range(updates)]
        self.lr = rates[-1]
        return torch.tensor(rates, device=self.device) if self.rates_on_device else rates

    def _train_on(
        self, chunk: Batch, objective: Objective, rates: Any, share: Share, most: int, listener: Listener
    ) -> tuple[Tensor, Tensor]:
        """Train on a chunk's batches in turn; returns the logits (m, classes) and the regularisers (updates,).

        ``most`` is the largest number of images of a chunk.
        """
        size = share.size
        self.ranks.splits = share.copies < self.ranks.size
        logits = torch.empty_like(chunk.given)
        regs: list[Tensor] = []
        captured = self._graph(chunk, objective, most // size, listener)
        if captured is not None:  # all whole batches at once
            replayed, values = captured.run(chunk, rates, listener.advance)
            logits[: len(replayed)] = replayed
            regs.extend(values.unbind())
        for start in range(len(regs) * size, len(chunk), size):
            rows = slice(start, start + size)
            batch = chunk[rows]
            with GRAPHS.guard(self.train.graph, batch.images, "update", self.train.precision):
                logits[rows], reg = self.update(batch, objective, rates[len(regs)], share.weight)
            regs.append(reg)
            listener.advance(len(batch) * share.batch // size)
        return logits, torch.stack(regs)

    def _graph(self, chunk: Batch, objective: Objective, batches: int, listener: Listener) -> CapturedUpdates | None:
        """The captured updates for a chunk's whole batches, or None without a graph that fits.

        The first chunk's update is captured. If that fails, a note says why, and this model trains without a graph.
        """
        if not self.captures or len(chunk) < self.train.batch_size:
            return None
        if self.captured is None:
            try:
                updates = GRAPHS.record(
                    lambda batch, rate: self.update(batch, objective, rate),
                    self.model,
                    self.optimizer,
                    chunk,
                    self.train.batch_size,
                    batches,
                )
            except Exception as error:  # a custom network may raise anything, and CUDA raises many types
                self.captures = False
                listener.note(f"CUDA graph capture failed ({one_line(error)}); using eager updates")
                return None
            self.captured = objective, updates
        captured_with, updates = self.captured
        return updates if captured_with == objective and updates.fits(chunk) else None

    def update(
        self, batch: Batch, objective: Objective, rate: float | Tensor, weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """One optimiser step on one batch; returns its logits (b, classes) and the regulariser's value ().

        ``rate`` is the learning rate; on a CUDA device it is a scalar there, so that nothing is copied. ``weight`` is
        that of this rank's share of the batch.
        """
        with autocast(self.train, self.device):
            logits = self.forward(batch.images)
        logits = logits.float()
        self.optimizer.zero_grad()
        loss = objective(logits, batch.given, batch.soft).mean()
        (loss if self.ranks.size == 1 else weight * loss).backward()
        self.ranks.add_up([p.grad for p in self.parameters if p.grad is not None])
        if self.train.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.train.clip_grad)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        reg = optim.update(self.optimizer, self.parameters, self.train.reg, self.train.reg_coef)
        self._update_average()
        return logits.detach(), reg

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average, if there is one, towards the model; what are no floats is copied."""
        if self.average is None or self.train.ema is None:
            return
        decay = min(self.train.ema, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for held, value in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if value.is_floating_point():
                held.lerp_(value, 1 - decay)
            else:
                held.copy_(value)


class EpochSums:
    """An epoch's metrics, summed on the device from the logits of the training updates."""

    def __init__(self, objective: Objective, train: TrainConfig, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.complete = ranks.size == 1  # otherwise these are one rank's sums, until ``add_up``
        self.objective = objective
        self.train = train
        self.images = 0
        self.updates = 0
        self.has_teacher = False
        # loss on given labels, loss on the teacher, right answers, regulariser; MPS has no float64
        self.sums = torch.zeros(4, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        self.first_not_finite = torch.full((), torch.inf, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, chunk: Batch, regs: Tensor, share: Share) -> None:
        """Add a chunk: its logits (m, classes), its labels (m,) and the regulariser at each update (updates,).

        The sums count images that several ranks compute once.
        """
        on_given, on_soft = self.objective.terms(logits, chunk.given, chunk.soft)
        right = logits.argmax(1) == labels
        sums = torch.stack([t.to(self.sums.dtype).sum() for t in (on_given, on_soft, right, regs)])
        if share.copies > 1:
            sums[:3] /= share.copies
        self.sums += sums
        bad = ~(on_given + on_soft).isfinite()
        at = torch.where(bad.any(), bad.int().argmax() // share.size + self.updates + 1, torch.inf)
        self.first_not_finite = torch.minimum(self.first_not_finite, at)
        self.images += len(labels)
        self.updates += len(regs)
        self.has_teacher |= chunk.soft is not None

    def add_up(self, images: int) -> None:
        """Add up the sums of all ranks, at the end of an epoch of ``images`` images. Collective."""
        if not self.complete:
            self.ranks.add_up([self.sums])
            self.ranks.least(self.first_not_finite)
            self.sums[3] /= self.ranks.size  # every rank has the whole regulariser
            self.images = images
            self.complete = True

    def read(self) -> dict[str, float | None]:
        """The means so far: ``truth_loss`` and ``acc`` (on the given labels), ``teacher_loss`` (None without a
        teacher), ``reg``, and ``loss`` = alpha * truth_loss + (1 - alpha) * teacher_loss + reg. Waits for the device.

        Raises NotFiniteLossError.
        """
        bad = self.first_not_finite.item()
        if self.complete and math.isfinite(bad):
            raise NotFiniteLossError(int(bad), self.train)
        on_given, on_soft, right, reg = self.sums.tolist()
        alpha = self.objective.alpha if self.has_teacher else 1.0
        on_given = on_given / self.images
        on_soft = on_soft / self.images
        reg = reg / self.updates
        return {
            "loss": alpha * on_given + (1 - alpha) * on_soft + reg,
            "truth_loss": on_given,
            "teacher_loss": on_soft if self.has_teacher else None,
            "reg": reg,
            "acc": right / self.images,
        }
