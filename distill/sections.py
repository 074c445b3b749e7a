"""The sections of a configuration, but [chain], as frozen dataclasses. Illegal values are refused here."""

import re
from dataclasses import dataclass, fields
from typing import Any

from distill import losses, noise
from distill.arguments import Range
from distill.options import Section, flag, option, require

TORCHVISION_RESNETS = (18, 34, 50, 101)
CIFAR_RESNETS = (8, 14, 20, 32, 44, 56, 110)
CUSTOM_MODEL = 0  # `resnet` of a run with another network: the one that `network` names, or a Python function's
DATASETS = ("cifar10", "cifar100", "digits", "imagefolder", "arrays", "features")
ARRAYS = ("arrays", "features")  # read from the file that --data names
CUSTOM_DATA = "custom"  # `dataset` of a run on Python arrays
SIZE = Range(1, 10**9)  # of a data set or a batch
POSITIVE = Range(1e-30, 1e38)  # as a float32 can hold
DECAY = Range(0.0, 1e18)  # Adam squares gradients of this size, and a float32 holds the square


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, how many, and what is done to their labels."""

    section = "data"

    dataset: str = option(
        "cifar10",
        f"where the images come from: {', '.join(DATASETS)}, or package.module:function for your own; "
        "imagefolder reads DIR/train/<class>/* and DIR/test/<class>/*, or DIR/<class>/* with --test-size",
    )
    data_dir: str = option("data", "folder of the data set (downloads go here)", identity=False, path=True)
    cache_dir: str | None = option(
        None, "folder of decoded images [default: self-distiller in the user's cache folder]", identity=False, path=True
    )
    data: str | None = option(
        None, "file of arrays or features: .npz or a folder of .npy; X, y, X_test, y_test", identity=False, path=True
    )
    data_sha256: str | None = option(
        None, "refuse to run unless the data have this SHA-256, as in data.sha256 of an earlier run", identity=False
    )
    image_size: int | None = option(
        None, "resize the images of an imagefolder to squares of this many pixels", Range(1, 2**16)
    )
    classes: tuple[str, ...] = option((), "use only these classes, two or more, in this order")
    labels: str = option(
        "fine", "labels of cifar100: its 100 classes, or its 20 superclasses", choices=("fine", "coarse")
    )
    train_size: int | None = option(None, "train on a class-balanced subset of this many images", SIZE)
    test_size: int | None = option(None, "test on a class-balanced subset of this many images", SIZE)
    val_size: int = option(
        0, "hold out this many training images, class-balanced; their labels stay true", Range(0, 10**9)
    )
    label_noise: float = option(
        0.0, "fraction of the training labels to corrupt (of those that the kind affects)", Range(0.0, 1.0)
    )
    label_noise_kind: str = option(
        "symmetric",
        "; ".join(f"{name}: {kind.help}" for name, kind in noise.NOISE_KINDS.items()),
        choices=tuple(noise.NOISE_KINDS),
    )
    epsilon: float | None = option(
        None,
        "privacy of --label-noise-kind label-dp: a label stays with probability e^epsilon / (e^epsilon + K - 1)",
        POSITIVE,
    )
    human_labels: str | None = option(
        None,
        "labels of --label-noise-kind human: noisy for CIFAR-100N, the others for CIFAR-10N; read from the authors' "
        "file in --data-dir",
        choices=tuple(noise.HUMAN_LABELS),
    )
    confusion: str | None = option(
        None, "folder of the finished model for --label-noise-kind confusable, such as runs/x/seed_1/step_0", path=True
    )
    augment: bool = option(
        True, "random crops (zero padding of an eighth of the width) and flips (no flips for digits)"
    )
    cutout: int = option(
        0,
        "with augmentation, make a square of this many pixels a side black, at a random place (DeVries & Taylor 2017)",
        Range(0, 2**16),
    )

    def check(self) -> None:
        require(
            self.dataset in (*DATASETS, CUSTOM_DATA) or ":" in self.dataset,
            f"dataset must be one of {', '.join(DATASETS)} or package.module:function, not {self.dataset}",
        )
        require(
            self.data_sha256 is None or re.fullmatch("[0-9a-f]{64}", self.data_sha256) is not None,
            f"data_sha256 must be 64 hexadecimal digits, not {self.data_sha256}",
        )
        require(
            self.image_size is None or self.dataset == "imagefolder",
            f"image_size is for --dataset imagefolder; the images of {self.dataset} have one size already",
        )
        is_file = self.dataset in ARRAYS
        require(self.data is None or is_file, "data is for --dataset arrays, features")
        require(self.data is not None or not is_file, f"dataset {self.dataset} needs --data FILE")
        different = len(self.classes) != 1 and len(set(self.classes)) == len(self.classes)
        require(different, f"classes must be two or more different names, not {' '.join(self.classes)}")
        require(self.dataset != "features" or not self.cutout, "cutout is for images; leave it out with features")
        require(
            self.labels == "fine" or self.dataset == "cifar100", f"labels coarse is for cifar100, not {self.dataset}"
        )
        require(self.augment or not self.cutout, "cutout is a part of the augmentation; leave --no-augment out")
        kind = noise.NOISE_KINDS[self.label_noise_kind]
        require(
            not (kind.sets_rate and self.label_noise),
            f"label_noise_kind {self.label_noise_kind} has its own rate: leave --label-noise out",
        )
        for name, other in noise.NOISE_KINDS.items():
            if other.needs:
                given = getattr(self, other.needs) is not None
                require(given or other is not kind, f"label_noise_kind {name} needs {flag(other.needs)}")
                require(not given or other is kind, f"{other.needs} is for --label-noise-kind {name}")

    @property
    def corrupts(self) -> bool:
        """Whether training labels are corrupted."""
        return self.label_noise > 0 or noise.NOISE_KINDS[self.label_noise_kind].sets_rate


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which network."""

    section = "model"

    resnet: int | None = option(
        None,
        "depth of a ResNet: 18, 34, 50 and 101 are torchvision's, the others are of the 6n+2 family for CIFAR "
        "(He et al. 2016, section 4.2) [default: 50]",
        choices=tuple(sorted(CIFAR_RESNETS + TORCHVISION_RESNETS)),
        also=(CUSTOM_MODEL,),
    )
    stem: str | None = option(
        None,
        "first layers of a torchvision ResNet: imagenet (7x7, stride 2, max-pool) or cifar (3x3, stride 1) "
        "[default: imagenet]",
        choices=("imagenet", "cifar"),
    )
    width: int | None = option(None, "channels of the first stage of the 6n+2 family [default: 16]", Range(1, 4096))
    pretrained: bool = option(False, "start every model from torchvision's ImageNet parameters, with a new last layer")
    network: str | None = option(
        None,
        "another network in the place of --resnet: wrn-D-K, a wide residual network (such as wrn-28-10); linear, "
        "linear-no-bias, mlp or mlp-H-..., with hidden layers of H, ... units [256], for features; "
        "torchvision:NAME, such as torchvision:mobilenet_v3_small; or package.module:function, your own, which is "
        "called with (channels, classes)",
    )

    @property
    def wide(self) -> tuple[int, int] | None:
        """Depth and width of a wide residual network, or None for another one."""
        found = re.fullmatch(r"wrn-(\d{1,4})-(\d{1,4})", self.network or "")
        return (int(found[1]), int(found[2])) if found else None

    @property
    def hidden(self) -> tuple[int, ...] | None:
        """Widths of the hidden layers of a linear classifier (none) or an MLP, or None for another network."""
        if self.network in ("linear", "linear-no-bias"):
            return ()
        found = re.fullmatch(r"mlp((-\d{1,5})*)", self.network or "")
        return tuple(int(width) for width in (found[1] or "-256").split("-")[1:]) if found else None

    @property
    def torchvision(self) -> str | None:
        """The name of torchvision's network, or None for another one."""
        package, _, name = (self.network or "").partition(":")
        return name if package == "torchvision" else None

    @property
    def is_function(self) -> bool:
        """Whether ``network`` names the user's function."""
        return self.network is not None and self.torchvision is None and ":" in self.network

    @property
    def is_small(self) -> bool:
        """Whether it is of the 6n+2 family."""
        return self.resnet in CIFAR_RESNETS and self.network is None

    @property
    def is_python(self) -> bool:
        """Whether the network came from a Python function that the configuration does not name."""
        return self.resnet == CUSTOM_MODEL and self.network is None

    @property
    def name(self) -> str:
        """The name in messages: ``ResNet-50``, ``my_nets:wide``."""
        if self.network is not None:
            return self.network
        return "a custom network" if self.is_python else f"ResNet-{self.resnet}"

    @property
    def folder_name(self) -> str:
        """The name in the default run directory: ``resnet50``, ``wide``."""
        return f"resnet{self.resnet}" if self.network is None else self.network.rpartition(":")[2]

    def resolved(self) -> dict[str, Any]:
        if self.network is not None:
            stem = {"stem": self.stem or "imagenet"} if self.torchvision else {}
            return {"resnet": self.resnet or CUSTOM_MODEL, **stem}
        if self.is_small:
            return {"stem": self.stem or "cifar", "width": 16 if self.width is None else self.width}
        return {} if self.is_python else {"resnet": self.resnet or 50, "stem": self.stem or "imagenet"}

    def check(self) -> None:
        if self.network is not None:
            if self.wide is not None:
                depth, width = self.wide
                require(
                    depth >= 10 and depth % 6 == 4 and width >= 1,
                    f"network {self.network}: the depth of wrn-D-K must be 10, 16, 22, 28, ..., and K at least 1",
                )
            elif self.hidden is not None:
                require(0 not in self.hidden, f"network {self.network}: a hidden layer needs at least one unit")
            else:
                require(
                    ":" in self.network,
                    "network must be wrn-D-K, linear, mlp, torchvision:NAME or package.module:function, not "
                    f"{self.network}",
                )
            for name in ("resnet", "width") if self.torchvision else ("resnet", "stem", "width", "pretrained"):
                require(not getattr(self, name), f"{name} is for the ResNets; leave it out with --network")
        elif self.is_small:
            require(self.stem == "cifar", f"resnet {self.resnet} has a CIFAR stem; --stem is for 18, 34, 50, 101")
            require(
                not self.pretrained, f"there are no pretrained weights for resnet {self.resnet}; use 18, 34, 50 or 101"
            )
        else:
            require(self.width is None, "width is for the 6n+2 family (8, 14, 20, 32, 44, 56, 110)")


@dataclass(frozen=True)
class TrainConfig(Section):
    """How one model is trained."""

    section = "train"

    max_epochs: int = option(75, "epochs per model", Range(1, 10**6))
    batch_size: int = option(16, "images per update, at least 2 (batch normalisation needs it)", Range(2, 10**9))
    loss: str = option("mse", "; ".join(f"{name}: {loss.help}" for name, loss in losses.LOSSES.items()))
    temperature: float = option(
        1.0,
        f"temperature of teacher and student in the teacher's term of {losses.with_temperature()} (Hinton et al. 2015)",
        Range(1e-6, 1e6),  # beyond them float32 loses the differences between logits / T, or their scale
    )
    reg: str = option(
        "norm",
        "regulariser over all parameter tensors: norm: sum of L2 norms; l2: sum of squared L2 norms; or none",
        choices=("norm", "l2", "none"),
    )
    reg_coef: float = option(1e-4, "coefficient of the regulariser", DECAY)
    optimizer: str = option("adam", "algorithm of the updates", choices=("adam", "adamw", "sgd"))
    lr: float = option(1e-4, "learning rate; with a schedule, the highest", POSITIVE)
    nesterov: bool = option(False, "Nesterov momentum, for sgd")
    momentum: float | None = option(None, "momentum of sgd [default: 0.9]", Range(0.0, 1.0, without="high"))
    weight_decay: float = option(0.0, "weight decay of the optimiser", DECAY)
    lr_schedule: str = option("constant", "schedule of the learning rate", choices=("constant", "cosine", "onecycle"))
    warmup_epochs: int = option(0, "epochs of linear warm-up before the schedule", Range(0, 10**6))
    label_smoothing: float = option(
        0.0,
        "share of each given label that is spread over all classes (Szegedy et al. 2016)",
        Range(0.0, 1.0, without="high"),
    )
    clip_grad: float | None = option(
        None, "scale the gradient of the loss (without the regulariser) down to this L2 norm if it is larger", POSITIVE
    )
    ema: float | None = option(
        None,
        "keep, and evaluate, an exponential moving average of all parameters with this decay, which begins lower: "
        "(1 + t) / (10 + t) after t updates",
        Range(0.0, 1.0, without="high"),
    )
    precision: str = option(
        "fp32",
        "fp32: float32 throughout; tf32: float32 products on tensor cores (CUDA); bf16: autocast, with float32 "
        "parameters and losses",
        choices=("fp32", "tf32", "bf16"),
    )
    sync_batchnorm: bool = option(
        False, "under torchrun, normalise by the statistics of whole batches instead of each rank's part of them"
    )
    deterministic: bool = option(
        False, "make repetitions bit-identical on a GPU too, which is slower (on a CPU they always are)"
    )
    compile: bool = option(
        False,
        "use torch.compile for the forward and backward pass: takes minutes in every process, and was slower in every "
        "case measured on a CPU",
    )
    graph: bool = option(
        True,
        "on a CUDA device, capture the update as a CUDA graph and replay it (turn off for debugging)",
        identity=False,
    )
    fast_dev_run: bool = option(False, "one epoch of two batches per model, to see whether it runs")

    def resolved(self) -> dict[str, Any]:
        momentum = 0.9 if self.optimizer == "sgd" and self.momentum is None else self.momentum
        return {"loss": losses.canonical(self.loss), "momentum": momentum}

    def check(self) -> None:
        require(
            self.temperature == 1 or losses.parse(self.loss)[0].takes_temperature,
            f"temperature is for --loss {losses.with_temperature()}, not {self.loss}",
        )
        require(
            self.momentum is None or self.optimizer == "sgd", f"momentum is for --optimizer sgd, not {self.optimizer}"
        )
        require(
            not (self.sync_batchnorm and self.compile),
            "sync_batchnorm exchanges numbers within the network, which --compile cannot",
        )
        require(
            not self.nesterov or bool(self.momentum),
            "nesterov needs --optimizer sgd with a --momentum that is not 0",
        )
        require(
            self.warmup_epochs < self.max_epochs,
            f"warmup_epochs must be in [0, max_epochs), not {self.warmup_epochs} of {self.max_epochs}",
        )
        require(
            self.lr_schedule != "onecycle" or self.warmup_epochs == 0,
            "onecycle has its own warm-up; leave --warmup-epochs out",
        )

    @property
    def epochs(self) -> int:
        """Epochs that are run: ``max_epochs``, or 1 in a fast development run."""
        return 1 if self.fast_dev_run else self.max_epochs


@dataclass(frozen=True)
class RunConfig(Section):
    """Where to run, and where results are kept."""

    section = "run"

    output: str | None = option(
        None, "run directory [default: runs/<dataset>-<network>-<hash of the options>]", identity=False, path=True
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:<i> or mps", identity=False)
    threads: int | None = option(
        None, "CPU threads per process [default: cores / jobs]", Range(1, 1024), identity=False
    )
    jobs: int | str = option(
        1,
        "chains to train at the same time, each in a separate process, or on a CUDA device in a thread with its own "
        "stream; auto: the number that trains fastest here",
        Range(1, 1024),
        identity=False,
        words=("auto",),
    )
    tensorboard: bool = option(
        False, "also write TensorBoard's event files into the models' folders (needs tensorboard)", identity=False
    )
    devices: str | None = option(
        None,
        "train on several CUDA devices, in --jobs processes on each: all, or numbers with commas (0,1,3)",
        identity=False,
    )
    executor: str = option(
        "local", "local: this machine; slurm: jobs of a SLURM cluster", choices=("local", "slurm"), identity=False
    )
    slurm_partition: str | None = option(None, "partition of the jobs", identity=False)
    slurm_time: str | None = option(None, "time limit of a job, such as 4:00:00", identity=False)
    slurm_gpus: str | None = option(None, "GPUs of a job, such as 1 or a100:1", identity=False)
    slurm_cpus: int | None = option(None, "CPU cores of a job", Range(1, 1024), identity=False)
    slurm_mem: str | None = option(None, "memory of a job, such as 16G", identity=False)
    slurm_account: str | None = option(None, "account of the jobs", identity=False)
    slurm_qos: str | None = option(None, "quality of service of the jobs", identity=False)
    slurm_array_parallelism: int | None = option(
        None, "largest number of jobs of a run [default: 32]", Range(1, 1000), identity=False
    )
    slurm_setup: str | None = option(None, "shell commands before the program, as 'module load cuda'", identity=False)
    slurm_option: tuple[str, ...] = option((), "any other options of sbatch, as key=value", identity=False)
    yes: bool = option(False, "allow a grid of more than 100,000 models", identity=False)

    def check(self) -> None:
        legal = re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device) is not None
        require(legal, f"device must be auto, cpu, cuda, cuda:<i> or mps, not {self.device}")
        require(
            self.devices is None or re.fullmatch(r"all|\d+(,\d+)*", self.devices) is not None,
            f"devices must be all or numbers with commas, such as 0,1, not {self.devices}",
        )
        require(self.devices is None or self.device == "auto", "devices names them all: leave --device out")
        require(self.jobs != "auto" or self.executor == "local", "--jobs auto: give a number with --executor slurm")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.startswith("slurm_") and isinstance(value, str) and f.name != "slurm_setup":
                require(re.fullmatch(r"\S+", value) is not None, f"{f.name} must be one word, not {value!r}")
        for each in self.slurm_option:
            require(re.fullmatch(r"[\w-]+=\S+", each) is not None, f"slurm_option must be key=value, not {each!r}")
            own = [name for name in ("job-name", "array") if name.startswith(each.partition("=")[0])]  # or abbreviated
            require(not own, "slurm_option job-name and array are set by the program; see --slurm-array-parallelism")
