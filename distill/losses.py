"""The losses that ``--loss`` names. To add one, write its function and its line in ``LOSSES``.

A loss may have options, which follow its name: ``gce:q=0.5``, or ``name:a=1,b=2`` for several. This module loads
without torch, so that ``--help`` can list the losses at once.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from distill.errors import ConfigError, suggestion

if typing.TYPE_CHECKING:
    from torch import Tensor

LossFunction = Callable[["Tensor", "Tensor"], "Tensor"]  # (logits, target), each (n, classes), to (n,)


@dataclass(frozen=True)
class Option:
    """A number that a loss takes, with its default and its legal values."""

    default: float
    legal: Callable[[float], bool]
    range: str  # in words, as "in [1e-9, 1]"


@dataclass(frozen=True)
class Loss:
    """A loss per image between logits and target probabilities, and what training may do with it.

    ``function(logits, target, **options)`` takes two (n, classes) tensors and returns (n,). If it is linear in the
    target up to a term without logits, training uses one blended target; otherwise ``Objective`` adds two weighted
    losses. ``takes_temperature`` permits T^2 * loss(logits / T, target) as the loss against the teacher, and
    ``takes_any_alpha`` alphas outside [0, 1], which make targets negative.
    """

    function: Callable[..., Tensor]
    help: str
    linear_in_target: bool = True
    takes_temperature: bool = False
    takes_any_alpha: bool = False
    options: dict[str, Option] = field(default_factory=dict)


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """(n,): mean over classes of (softmax(logits) - target)^2, as in the paper's program."""
    return (logits.softmax(1) - target).square().mean(1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(n,): -sum target * log softmax(logits), natural logarithm."""
    return -(target * logits.log_softmax(1)).sum(1)


def kl_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """(n,): KL(target || softmax(logits)), the cross entropy less the target's entropy."""
    import torch

    return cross_entropy(logits, target) - torch.special.entr(target).sum(1)


def generalised_cross_entropy(logits: Tensor, target: Tensor, q: float) -> Tensor:
    """(n,): sum over classes of target * (1 - p^q) / q, with p = softmax(logits).

    For a label it is (1 - p_label^q) / q (Zhang & Sabuncu 2018, arXiv 1805.07836): the absolute error at
    q = 1, and the cross entropy in the limit q = 0.
    """
    return -(target * (q * logits.log_softmax(1)).expm1()).sum(1) / q


LOSSES: dict[str, Loss] = {
    "mse": Loss(squared_error, "squared error of the softmax, mean over classes", takes_any_alpha=True),
    "ce": Loss(cross_entropy, "cross entropy", takes_temperature=True),
    "kl": Loss(kl_divergence, "ce less the target's entropy", takes_temperature=True),
    "gce": Loss(
        generalised_cross_entropy,
        "generalised cross entropy (Zhang & Sabuncu 2018), which trusts wrong labels less; gce:q=0.5 sets q in "
        "[1e-9, 1], otherwise 0.7",
        options={"q": Option(0.7, lambda q: 1e-9 <= q <= 1, "in [1e-9, 1]")},
    ),
}


def parse(text: str) -> tuple[Loss, dict[str, float]]:
    """The loss that ``text`` names and the values of all its options.

    Raises ConfigError for an unknown loss or option, a value that is no number and one out of range.
    """
    name, colon, given = text.partition(":")
    if name not in LOSSES:
        raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, not {text}{suggestion(name, LOSSES)}")
    loss = LOSSES[name]
    options = {key: option.default for key, option in loss.options.items()}
    seen: set[str] = set()
    if colon and not given:
        raise ConfigError(f"loss {text}: write the options after the colon, as in gce:q=0.5")
    for part in given.split(",") if colon else ():
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key in seen:
            raise ConfigError(f"loss {text}: {key} is given twice")
        seen.add(key)
        if key not in options:
            known = f"its options are {', '.join(options)}" if options else "it has no options"
            raise ConfigError(f"loss {text}: {name} has no option {key!r}{suggestion(key, options)}; {known}")
        options[key] = _number(text, key, value, loss.options[key])
    return loss, options


def _number(text: str, key: str, value: str, option: Option) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ConfigError(f"loss {text}: {key} must be a number, not {value!r}") from None
    if not math.isfinite(number) or not option.legal(number):
        raise ConfigError(f"loss {text}: {key} must be {option.range}, not {value}")
    return number


def canonical(text: str) -> str:
    """One spelling for equal losses: options in the table's order, without those at their defaults.

    Raises ConfigError like ``parse``.
    """
    loss, options = parse(text)
    differing = [
        f"{key}={repr(value).removesuffix('.0')}"
        for key, value in options.items()
        if value != loss.options[key].default
    ]
    name = text.partition(":")[0]
    return f"{name}:{','.join(differing)}" if differing else name


def loss_function(text: str) -> LossFunction:
    """The function of the loss that ``text`` names, with its options filled in. Raises ConfigError like ``parse``."""
    loss, options = parse(text)
    return partial(loss.function, **options)


def with_any_alpha() -> str:
    """The names of the losses that take alphas outside [0, 1], for a message."""
    return " and ".join(name for name, loss in LOSSES.items() if loss.takes_any_alpha)


def with_temperature() -> str:
    """The names of the losses that take a temperature, for a message: ``ce and kl``."""
    return " and ".join(name for name, loss in LOSSES.items() if loss.takes_temperature)
