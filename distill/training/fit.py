"""Training one model, epoch by epoch.

Nothing in an epoch waits for the device; metrics are read at its end (and once a second for the bars of a terminal,
between two chunks). On a CUDA device the update is a graph (cuda_graph.py), replayed.
"""

import math

import torch
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.training import augment, optim
from distill.training import cuda_graph as graph
from distill.training.batches import ImageStore, chunk_size, chunks
from distill.training.device import autocast, place
from distill.training.listener import Listener
from distill.training.objective import Objective, one_hot
from distill.training.optim import learning_rate, make_optimizer, updates_per_epoch
from distill.training.predict import soft_targets


class NotFiniteLossError(ArithmeticError):
    """A loss that is infinite or not a number; ``update`` counts from 1 within the epoch."""

    def __init__(self, update: int):
        super().__init__(f"the loss is not finite at update {update}")
        self.update = update


class Trainer:
    """A model in training: its weights, its optimiser and the number of finished epochs."""

    def __init__(self, model: nn.Module, train: TrainConfig, device: torch.device):
        self.model = place(model, train, device)
        self.forward = torch.compile(self.model, dynamic=False) if train.compile else self.model
        self.train, self.device = train, device
        self.optimizer = make_optimizer(self.model, train)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.epochs = 0
        self.lr = train.lr  # of the last update
        self.rates_on_device = graph.possible(device)
        self.captures = self.rates_on_device and train.graph
        self.replayed: tuple[Objective, graph.Updates] | None = (
            None  # the graph, and the objective it was captured with
        )

    def state_dict(self) -> dict:
        """Tensors and plain numbers only, so that it can be read with ``weights_only=True``, on any device."""
        optimizer = self.optimizer.state_dict()
        if self.rates_on_device:  # else they are numbers already
            optimizer["param_groups"] = [group | {"lr": self.lr} for group in optimizer["param_groups"]]
        return {"model": self.model.state_dict(), "optimizer": optimizer, "epochs": self.epochs}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` gave, on this device or another."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for p, held in self.optimizer.state.items():  # fused kernels go by memory: moments must lie as their weights do
            for name, value in held.items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                    held[name] = torch.empty_like(p).copy_(value)
        self.epochs = state["epochs"]

    def epoch(
        self,
        pool: ImageStore,
        plan: augment.Plan,
        classes: int,
        teacher: nn.Module | None,
        alpha: float,
        listener: Listener,
    ) -> dict:
        """Train one epoch on ``alpha * truth + (1 - alpha) * teacher``; return what ``EpochSums.read`` returns.

        Raises NotFiniteLossError.
        """
        size, batch = chunk_size(pool, self.train.batch_size), self.train.batch_size
        count = updates_per_epoch(len(plan), batch)
        objective = Objective(self.train.loss, self.train.temperature, alpha)
        sums = EpochSums(objective, batch, self.device)
        rates = [learning_rate(self.train, self.epochs * count + u, count) for u in range(count)]
        self.lr = rates[-1]
        if self.rates_on_device:
            rates = torch.tensor(rates, device=self.device)  # copied once an epoch, as the plan is
        self.model.train()
        for images, labels in chunks(pool, plan[: count * batch], size):
            truth = one_hot(labels, classes)
            soft = soft_targets(teacher, images, self.train)
            logits, regs, done = torch.empty_like(truth), [], 0
            here = rates[sums.updates :]
            if updates := self._graph(images, truth, soft, objective, size // batch, listener):
                done = len(images) // batch * batch
                logits[:done], values = updates.run(images, truth, soft, here, listener.advance)
                regs.extend(values.unbind())
            for i in range(done, len(images), batch):
                rows = slice(i, i + batch)
                some = images[rows]
                with graph.alone(self.train.graph, some, "update", self.train.precision):
                    logits[rows], reg = self.update(
                        some, truth[rows], soft if soft is None else soft[rows], objective, here[i // batch]
                    )
                regs.append(reg)
                listener.advance(len(some))
            sums.add(logits, labels, truth, soft, torch.stack(regs))
            listener.end_chunk(sums)
        self.epochs += 1
        figures = sums.read()
        if not torch.stack(torch._foreach_norm(self.parameters)).isfinite().all():  # the last update was one too many
            raise NotFiniteLossError(sums.updates)
        return figures

    def _graph(
        self, images: Tensor, truth: Tensor, soft: Tensor | None, objective: Objective, batches: int, listener: Listener
    ) -> graph.Updates | None:
        """The graph for a chunk's whole batches, or None where it has none.

        Captured with the first chunk, for up to ``batches`` a chunk. Where capture fails, a note says why, and updates
        go on eagerly.
        """
        batch = self.train.batch_size
        if not self.captures or len(images) < batch:
            return None
        if self.replayed is None:

            def update(images, truth, soft, rate):
                return self.update(images, truth, soft, objective, rate)

            try:
                updates = graph.Updates(update, self.model, self.optimizer, images, truth, soft, batch, batches)
            except Exception as error:  # anything that a network of one's own may do, and every kind that CUDA has
                self.captures = False
                listener.note(f"no CUDA graph, updates go on one by one: {' '.join(str(error).split()) or repr(error)}")
                return None
            self.replayed = objective, updates
        captured_with, updates = self.replayed
        return updates if captured_with == objective and updates.fits(images, truth, soft) else None

    def update(
        self, images: Tensor, truth: Tensor, soft: Tensor | None, objective: Objective, rate: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """One optimiser step on one batch; returns its logits (b, classes) and the regulariser's value ().

        ``rate`` is the learning rate; on a CUDA device it is a scalar there, so that nothing is copied.
        """
        with autocast(self.train, self.device):
            logits = self.forward(images)
        logits = logits.float()
        self.optimizer.zero_grad()
        objective(logits, truth, soft).mean().backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        reg = optim.update(self.optimizer, self.parameters, self.train.reg, self.train.reg_coef)
        return logits.detach(), reg


class EpochSums:
    """An epoch's figures, summed on the device from the logits that training saw; read once."""

    def __init__(self, objective: Objective, batch: int, device: torch.device):
        self.objective, self.batch = objective, batch
        self.images = self.updates = 0
        self.taught = False
        # truth loss, teacher loss, right answers, regulariser; float32 where the device has no float64
        self.sums = torch.zeros(4, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        self.first_bad = torch.full((), torch.inf, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, truth: Tensor, soft: Tensor | None, regs: Tensor) -> None:
        """Add a chunk: logits, truth and soft (m, classes), labels (m,), the regulariser at each update (updates,)."""
        zero = torch.zeros_like(labels, dtype=torch.float32)
        on_truth, on_soft = (
            (self.objective.function(logits, truth), zero)
            if soft is None
            else self.objective.terms(logits, truth, soft)
        )
        right = logits.argmax(1) == labels
        self.sums += torch.stack([t.to(self.sums.dtype).sum() for t in (on_truth, on_soft, right, regs)])
        bad = ~(on_truth + on_soft).isfinite()
        at = torch.where(bad.any(), bad.int().argmax() // self.batch + self.updates + 1, torch.inf)
        self.first_bad = torch.minimum(self.first_bad, at)
        self.images += len(labels)
        self.updates += len(regs)
        self.taught |= soft is not None

    def read(self) -> dict[str, float | None]:
        """Means so far: ``truth_loss``, ``teacher_loss`` (None without a teacher), ``reg``, ``acc`` (against the given
        labels) and ``loss`` = alpha * truth_loss + (1 - alpha) * teacher_loss + reg. Waits for the device.
        """
        if math.isfinite(bad := self.first_bad.item()):
            raise NotFiniteLossError(int(bad))
        on_truth, on_soft, right, reg = self.sums.tolist()
        alpha = self.objective.alpha if self.taught else 1.0
        on_truth, on_soft, reg = on_truth / self.images, on_soft / self.images, reg / self.updates
        return {
            "loss": alpha * on_truth + (1 - alpha) * on_soft + reg,
            "truth_loss": on_truth,
            "teacher_loss": on_soft if self.taught else None,
            "reg": reg,
            "acc": right / self.images,
        }
