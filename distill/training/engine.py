"""One model: an epoch of training, predictions, soft targets. All that is about speed lives here.

Images stay uint8 in memory on the device (or on the host, where they do not fit, copied one chunk ahead). An epoch
goes by in chunks of some thousand images: a chunk is gathered, augmented, shown to the teacher once in eval mode, and
then trained on in mini-batches. Nothing in an epoch waits for the device; figures are read at its end (and once a
second for the bars of a terminal, between two chunks). On a CUDA device the update is a graph (graph.py), replayed.
"""

import ctypes
import math
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.data.splits import Split
from distill.errors import ConfigError
from distill.training import augment, decay
from distill.training import cuda_graph as graph
from distill.training.listener import Listener
from distill.training.objective import Objective, one_hot

CHUNK_PIXELS = 2**20  # of the images augmented at once: 1,024 of CIFAR
PASS_PIXELS = 2**18  # of the images that a model predicts at once: 256 of CIFAR, small enough for most devices
RESIDENT_SHARE = 0.5  # of the free device memory that a training set may take before it stays on the host
_own = threading.local()


class NotFiniteLossError(ArithmeticError):
    """A loss that is infinite or not a number; ``update`` counts from 1 within the epoch."""

    def __init__(self, update: int):
        super().__init__(f"the loss is not finite at update {update}")
        self.update = update


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` names; auto takes CUDA, then MPS, then the CPU. Raises ConfigError without it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0  # a driver too old shows devices, but has none
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise ConfigError(f"--device {name}: {f'only {seen} CUDA devices' if seen else 'no CUDA device'} here; try cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: there is no such device here; try cpu")
    return device


def set_up(train: TrainConfig, device: torch.device, threads: int | None) -> None:
    """Set torch's global switches: threads, TF32, determinism. Raises ConfigError for a precision the device lacks."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        _keep_freed_memory()
    if train.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"--precision tf32 needs a CUDA device, not {device.type}")
    if device.type == "cuda":
        if device.index is not None:  # a bare "cuda" is the current device, and set_device refuses it
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high" if train.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = train.precision == "tf32"  # torch's own default is True
        torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in any order
    if train.deterministic != torch.are_deterministic_algorithms_enabled():  # the call alone imports two seconds' worth
        torch.use_deterministic_algorithms(train.deterministic)
        # Else torch writes NaN over all memory that it hands out: nothing here reads it.
        torch.utils.deterministic.fill_uninitialized_memory = not train.deterministic


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed buffers: returned to the system, the next update would fault their pages in again.

    Elsewhere than on glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most of older glibc
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class ImageStore:
    """A split in memory, on the device or (pinned) on the host."""

    images: Tensor  # (n, c, h, w) uint8
    labels: Tensor  # (n,) int64, on the device
    device: torch.device

    def __len__(self) -> int:
        return len(self.labels)


def make_image_store(split: Split, device: torch.device, resident: bool | None = None) -> ImageStore:
    """Put a split into device memory where it takes no more than half of what is free, else into pinned host memory."""
    # Strides anew: an axis of one channel may have any, and by them convolutions choose their kernel and last bits.
    images = torch.from_numpy(split.images).flatten().view(split.images.shape)
    labels = torch.from_numpy(split.labels).to(device)
    if device.type == "cuda":
        if resident is None:
            resident = images.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        images = images.to(device) if resident else images.pin_memory()
    elif device.type != "cpu":
        images = images.to(device)
    return ImageStore(images, labels, device)


def chunk_size(pool: ImageStore, batch_size: int) -> int:
    """Images per chunk: about CHUNK_PIXELS, a multiple of the batch size. Depends on nothing but these two."""
    h, w = pool.images.shape[2:]
    return max(1, CHUNK_PIXELS // (h * w * batch_size)) * batch_size


def _copy_stream(device: torch.device):
    """This thread's own: torch has 32 streams a device and gives them out in turn: a new one may be another's."""
    streams = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]


def chunks(pool: ImageStore, plan: augment.Plan, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images (m, c, h, w) uint8 and labels (m,) on the device, in the plan's order, fetched a chunk ahead."""
    resident = pool.images.device.type == pool.device.type
    ahead = None if resident else _copy_stream(pool.labels.device)
    order, plan = plan.order, plan.to(pool.device)  # waits for the device, once an epoch

    def fetch(start: int) -> Tensor:
        if ahead is None:
            return pool.images[plan.order[start : start + size]]
        with torch.cuda.stream(ahead):
            return pool.images[order[start : start + size]].pin_memory().to(pool.device, non_blocking=True)

    following = fetch(0)
    for start in range(0, len(plan), size):
        images, part = following, plan[start : start + size]
        if ahead is not None:
            torch.cuda.current_stream().wait_stream(ahead)
            images.record_stream(torch.cuda.current_stream())
        if start + size < len(plan):
            following = fetch(start + size)
        yield augment.apply(images, part), pool.labels[part.order]


def channels_last(train: TrainConfig, device: torch.device) -> bool:
    """Whether convolutions take channels-last weights, and with them work on channels-last maps.

    On a CPU, where it was measured (benchmarks/README.md), and where CUDA's tensor cores multiply (bf16 and tf32):
    cuDNN would convert other operands at every layer. The latter is a rule, not measured; fp32 on CUDA stays as it is.
    """
    return device.type == "cpu" or (device.type == "cuda" and train.precision in ("bf16", "tf32"))


def place(model: nn.Module, train: TrainConfig, device: torch.device) -> nn.Module:
    """The model on the device, the weights of our own networks as ``channels_last`` has them.

    Others stay as they are: what they do with maps, such as ``x.view(len(x), -1)``, may ask for one layout.
    """
    model = model.to(device)
    layout = torch.channels_last if channels_last(train, device) else torch.contiguous_format
    for module in model.modules():
        if getattr(module, "any_layout", False):
            module.to(memory_format=layout)
    return model


def autocast(train: TrainConfig, device: torch.device):
    """The forward pass's precision; losses are computed in float32 outside it."""
    if train.precision != "bf16":
        return nullcontext()
    # No cache of converted weights on CUDA: each is used once in a pass, and chains in threads would share the cache.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cuda")


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, train: TrainConfig) -> Tensor:
    """Logits (m, classes) float32 of one chunk of images, the model in eval mode."""
    model.eval()
    parts = images.split(max(1, PASS_PIXELS // (images.shape[2] * images.shape[3])))
    with graph.alone(train.graph, images, "eval", train.precision), autocast(train, images.device):
        return torch.cat([model(part).float() for part in parts])


def predict_all(model: nn.Module, pool: ImageStore, train: TrainConfig) -> Tensor:
    """Logits (n, classes) float32 on the CPU for a whole split, in its order and not augmented."""
    n, size = len(pool), chunk_size(pool, train.batch_size)
    parts = (pool.images[i : i + size].to(pool.device, non_blocking=True) for i in range(0, n, size))
    return torch.cat([predict(model, part, train) for part in parts]).cpu()  # waits for the device


def soft_targets(teacher: nn.Module | None, images: Tensor, train: TrainConfig) -> Tensor | None:
    """The teacher's probabilities (m, classes) float32 at the temperature, for exactly these images."""
    return None if teacher is None else (predict(teacher, images, train) / train.temperature).softmax(1)


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """torch.optim's Adam, AdamW or SGD over the model's trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": train.lr, "weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=train.momentum, **options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer](parameters, **options)


def learning_rate(train: TrainConfig, update: int, updates_per_epoch: int) -> float:
    """The learning rate of one update, counted from 0 over the whole training. A function: there is no state to save.

    Warm-up rises linearly to ``lr`` over warmup_epochs. cosine then falls to 0. onecycle is the cosine form of
    Smith & Topin (2019) with torch's constants: lr/25 up to lr in 30 % of the updates, then down to lr/250,000;
    momentum stays as it is.
    """

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    total = train.epochs * updates_per_epoch
    if train.lr_schedule == "onecycle":
        peak = max(0.3 * total - 1, 1e-9)
        if update <= peak:
            return cosine(train.lr / 25, train.lr, update / peak)
        return cosine(train.lr, train.lr / 25e4, (update - peak) / max(total - 1 - peak, 1e-9))
    warmup = min(train.warmup_epochs, train.epochs - 1) * updates_per_epoch
    if update < warmup:
        return train.lr * (update + 1) / warmup
    if train.lr_schedule == "cosine":
        return cosine(train.lr, 0.0, (update - warmup) / (total - warmup))
    return train.lr


def updates_per_epoch(n: int, batch_size: int) -> int:
    """Updates in an epoch of ``n`` images. A last batch of one image is left out: it has no variance."""
    return n // batch_size + (n % batch_size > 1)


class Fit:
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
        reg = decay.step(self.optimizer, self.parameters, self.train.reg, self.train.reg_coef)
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
