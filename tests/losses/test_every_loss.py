"""Every loss of the table against its oracle, and that a wrong one is seen."""

from __future__ import annotations

import pytest
import torch
from support import oracles
from support.every_loss import AROUND, PLAIN, ROWS, call, check_oracle, data, make, samples, value_and_gradients

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels._losses import TABLE
from dmlkernels._options import options
from dmlkernels.losses import proxy_anchor
from dmlkernels.ops import pair_loss

CASES = [
    pytest.param(name, chosen, kind, id="-".join([name, *chosen, kind]))
    for name, chosen in samples()
    for kind in (("self", "gallery", "ids") if ROWS[name].pairs else ("self",))
]
NOT_IN_SAMPLES = {"check_finite", "num_classes", "embedding_size"}


def test_the_table_has_every_loss_and_every_loss_an_oracle():
    assert set(ROWS) == set(PLAIN), "every exported loss has a row in dmlkernels/_losses.py"
    assert len(ROWS) == len({row.name for row in TABLE}) == len(TABLE)
    assert set(AROUND) <= set(losses.__all__)
    for row in TABLE:
        assert callable(getattr(oracles, row.name, None)), f"{row.name} has no oracle in tests/support/oracles.py"
    functions = {name for name in F.__all__ if name.endswith("_loss")} - {"anti_collapse_loss"}
    assert {row.function for row in TABLE if row.function} == functions


@pytest.mark.parametrize("name", ROWS)
def test_every_option_is_in_a_sample(name):
    """With another value than its default, so that one that is ignored is seen."""
    row = ROWS[name]
    defaults = {option: parameter.default for option, parameter in row.arguments.items()}
    changed = {k for sample in row.samples for k, v in sample.items() if v != defaults.get(k)}
    assert set(options(row.type)) - NOT_IN_SAMPLES <= changed


@pytest.mark.parametrize("name, chosen, kind", CASES)
def test_value_and_gradient(backend, device, name, chosen, kind):
    check_oracle(name, chosen, kind, device)


@pytest.mark.parametrize(
    "name, chosen", [pytest.param(*sample, id="-".join([sample[0], *sample[1]])) for sample in samples()]
)
def test_of_totals_nothing_else_is_read(name, chosen, monkeypatch):
    """A loss that asks for the negatives' totals alone is the same wherever a kernel leaves the parts of them."""
    batch = data(name, "self")

    def outcome():
        loss = make(name, width=6, **chosen).double()
        return [*value_and_gradients(loss, batch, lambda b: call(loss, b)), *loss.last_stats.values()]

    def elsewhere(op, inputs, options, *arguments, **given):
        found = of_both_sides(op, inputs, options, *arguments, **given)
        if not options.neg_totals:
            return found
        moved = {}
        for field in ("sum", "slope"):
            both = getattr(found, field).clone()
            both[1] = torch.cat([both[1].sum()[None], torch.zeros_like(both[1][1:])])
            moved[field] = both
        return found._replace(**moved)

    whole = outcome()
    of_both_sides = pair_loss.of_both_sides
    for module in (pair_loss, proxy_anchor):  # whoever knows it by its name
        monkeypatch.setattr(module, "of_both_sides", elsewhere)
    torch.testing.assert_close(outcome(), whole, rtol=1e-12, atol=1e-12, equal_nan=True)


def _lose_a_row(grad):
    grad = grad.clone()
    grad[3] = 0
    return grad


FAULTS = {
    "scaled": lambda value, x: 3 * value + 7,
    "shifted": lambda value, x: value + 1e-3,
    "without one row": lambda value, x: value,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ROWS)
def test_a_wrong_loss_is_seen(name, fault, monkeypatch):
    """The same check, of a loss that is wrong, fails."""

    def wrong(name, **sizes_and_options):
        loss = make(name, **sizes_and_options)
        forward = loss.forward

        def faulty(x, *arguments, **given):
            if fault == "without one row":
                x = x.clone()
                x.register_hook(_lose_a_row)
            return FAULTS[fault](forward(x, *arguments, **given), x)

        loss.forward = faulty
        return loss

    check_oracle(name, {}, "self", "cpu")
    with pytest.raises(AssertionError):
        check_oracle(name, {}, "self", "cpu", make=wrong)
