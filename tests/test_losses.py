"""losses.py against torch's own losses, formulas by hand, and each loss's claim of linearity."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from distill import losses
from distill.config import TrainConfig
from distill.errors import ConfigError
from distill.losses import LOSSES, Loss, Option, canonical, loss_function, parse


def problem(seed: int, n: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits that take a gradient, labels, and a teacher's probabilities, float64."""
    rng = torch.Generator().manual_seed(seed)
    logits, teacher = (3 * torch.randn(n, classes, generator=rng, dtype=torch.float64) for _ in range(2))
    return logits.requires_grad_(), torch.randint(0, classes, (n,), generator=rng), teacher.softmax(1)


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels, 5).double()


# ------------------------------------------------------------------------------------------------------- the functions


def test_mse_is_torchs():
    logits, labels, soft = problem(1)
    for target in (one_hot(labels), soft):
        close(loss_function("mse")(logits, target).mean(), F.mse_loss(logits.softmax(1), target))


def test_ce_is_torchs_for_labels_and_for_probabilities():
    logits, labels, soft = problem(1)
    close(loss_function("ce")(logits, one_hot(labels)), F.cross_entropy(logits, labels, reduction="none"))
    close(loss_function("ce")(logits, soft), F.cross_entropy(logits, soft, reduction="none"))


def test_kl_is_torchs_and_zero_at_the_target():
    logits, labels, soft = problem(1)
    for target in (one_hot(labels), soft):
        expected = F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)
        close(loss_function("kl")(logits, target), expected)
    close(loss_function("kl")(soft.log(), soft), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("q", [1e-3, 0.3, 0.7, 1.0])
def test_gce_is_its_formula_for_labels_and_for_probabilities(q):
    logits, labels, soft = problem(1)
    gce, p = loss_function(f"gce:q={q}"), logits.softmax(1)
    close(gce(logits, one_hot(labels)), (1 - p.gather(1, labels[:, None])[:, 0] ** q) / q)
    close(gce(logits, soft), sum(soft[:, c] * (1 - p[:, c] ** q) / q for c in range(5)))


def test_gce_lies_between_the_absolute_error_and_the_cross_entropy():
    logits, labels, _ = problem(2)
    target = one_hot(labels)
    absolute_error = (logits.softmax(1) - target).abs().sum(1) / 2
    close(loss_function("gce:q=1")(logits, target), absolute_error)
    close(loss_function("gce:q=1e-9")(logits, target), loss_function("ce")(logits, target), rtol=1e-7)


def test_gce_by_hand():
    """Two classes at p = (1/4, 3/4) and q = 1/2: (1 - sqrt(1/4)) / (1/2) = 1 for the first class."""
    logits = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    close(loss_function("gce:q=0.5")(logits, torch.tensor([[1.0, 0.0]])), torch.tensor([1.0], dtype=torch.float64))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_certain_wrong_answer_has_a_finite_loss_and_gradient(loss):
    logits = torch.tensor([[1e4, 0.0]], requires_grad=True)
    value = loss_function(loss)(logits, torch.tensor([[0.0, 1.0]]))
    by_hand = {"mse": 1.0, "ce": 1e4, "kl": 1e4, "gce": 1 / 0.7}
    assert value.isfinite()
    assert value.item() == pytest.approx(by_hand.get(loss, value.item()), rel=1e-6)
    assert gradient(value, logits).isfinite().all()


@given(
    st.sampled_from(sorted(name for name, loss in LOSSES.items() if loss.linear_in_target)),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
)
def test_a_loss_that_claims_linearity_has_it(name, seed, alpha):
    """The gradient for a blended target is the blend of the gradients."""
    logits, labels, soft = problem(seed)
    truth, loss = one_hot(labels), loss_function(name)
    blended = gradient(loss(logits, alpha * truth + (1 - alpha) * soft), logits)
    terms = alpha * gradient(loss(logits, truth), logits) + (1 - alpha) * gradient(loss(logits, soft), logits)
    close(blended, terms)


# ------------------------------------------------------------------------------------------------------- names, options


def test_parse_gives_the_loss_and_all_its_options():
    assert parse("mse") == (LOSSES["mse"], {})
    assert parse("gce") == (LOSSES["gce"], {"q": 0.7})
    assert parse("gce:q=0.5") == (LOSSES["gce"], {"q": 0.5})


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        *(("mse", "mse"), ("gce", "gce"), ("gce:q=0.7", "gce"), ("gce:q=7e-1", "gce"), ("gce: q = 0.70", "gce")),
        *(("gce:q=0.5", "gce:q=0.5"), ("gce:q=.50", "gce:q=0.5"), ("gce:q=1.0", "gce:q=1"), ("gce:q=1", "gce:q=1")),
    ],
)
def test_equal_losses_have_one_spelling(text, spelled):
    assert canonical(text) == spelled
    assert canonical(spelled) == spelled
    assert parse(spelled) == parse(text)
    assert TrainConfig(loss=text) == TrainConfig(loss=spelled)


def test_several_options_are_spelled_in_the_tables_order(monkeypatch):
    positive = Option(1.0, lambda value: value > 0, "positive")
    monkeypatch.setitem(LOSSES, "two", Loss(lambda *_, a, b: (a, b), "", options={"a": positive, "b": positive}))
    assert canonical("two:b=3,a=2") == "two:a=2,b=3"
    assert canonical("two:b=3,a=1") == "two:b=3"
    assert loss_function("two:b=3")(None, None) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hinge", f"loss must be one of {', '.join(LOSSES)}, not hinge"),
        ("gcee", "not gcee (did you mean gce?)"),
        ("", f"loss must be one of {', '.join(LOSSES)}, not "),
        ("gce:p=0.5", "loss gce:p=0.5: gce has no option 'p'; its options are q"),
        ("gce:q", "loss gce:q: q must be a number, not ''"),
        ("gce:", "loss gce:: write the options after the colon, as in gce:q=0.5"),
        ("gce:q=0.5,q=0.6", "loss gce:q=0.5,q=0.6: q is given twice"),
        ("mse:q=0.5", "loss mse:q=0.5: mse has no option 'q'; it has no options"),
        ("gce:q=half", "loss gce:q=half: q must be a number, not 'half'"),
        ("gce:q=0", "loss gce:q=0: q must be in [1e-9, 1], not 0"),
        ("gce:q=1.5", "q must be in [1e-9, 1], not 1.5"),
        ("gce:q=nan", "q must be in [1e-9, 1], not nan"),
    ],
)
def test_bad_losses_are_one_line_errors(text, message):
    for reads in (parse, canonical, loss_function, lambda text: TrainConfig(loss=text)):
        with pytest.raises(ConfigError) as error:
            reads(text)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_temperature_is_for_the_losses_that_take_one():
    assert losses.with_temperature() == "ce and kl"
    for name, loss in LOSSES.items():
        if loss.takes_temperature:
            assert TrainConfig(loss=name, temperature=2.0).temperature == 2
        else:
            with pytest.raises(ConfigError, match=f"temperature is for --loss ce and kl, not {name}"):
                TrainConfig(loss=name, temperature=2.0)
