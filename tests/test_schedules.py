"""Learning rates against those computed by hand."""

import math

import pytest
import torch

from ldnq.schedules import Schedule
from ldnq.training_recipe import TrainingRecipe


def _rates(recipe, steps, losses=None, lr=None):
    """The rate of every step of a training of `recipe.epochs`, at whose ends are these `losses`."""
    group = {"params": [torch.nn.Parameter(torch.ones(1))]} | ({"lr": lr} if lr else {})
    optimizer = torch.optim.SGD([group], recipe.lr)
    schedule, rates = Schedule(optimizer, recipe, steps), []
    for epoch in range(recipe.epochs):
        for _ in range(steps):
            rates.append(schedule.rate)
            optimizer.step()
            schedule.step()
        schedule.end_epoch(losses[epoch] if losses else 1.0)
    return rates


def _recipe(schedule, **options):
    return TrainingRecipe(**{"epochs": 4, "lr": 0.8, "schedule": schedule} | options)


def test_a_constant_rate_stays():
    assert _rates(_recipe("constant"), 3) == pytest.approx([0.8] * 12)


def test_a_warmup_rises_in_a_line_to_the_full_rate():
    expected = [0.8 * (1 + step) / 4 for step in range(3)] + [0.8] * 9
    assert _rates(_recipe("constant", warmup=1), 3) == pytest.approx(expected)
    assert _rates(_recipe("constant", warmup=0.5), 4) == pytest.approx([0.8 / 3, 1.6 / 3] + [0.8] * 14)


def test_cosine_falls_over_the_steps_after_the_warmup():
    assert _rates(_recipe("cosine"), 3) == pytest.approx([0.4 * (1 + math.cos(math.pi * t / 12)) for t in range(12)])
    after = [0.4 * (1 + math.cos(math.pi * t / 9)) for t in range(9)]
    assert _rates(_recipe("cosine", warmup=1), 3) == pytest.approx([0.2, 0.4, 0.6, *after])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.8] * 6 + [0.08] * 3 + [0.008] * 3),
        ({"milestones": (1, 3), "gamma": 0.5}, [0.8] * 3 + [0.4] * 6 + [0.2] * 3),
        ({"milestones": (0.25,)}, [0.8] * 3 + [0.08] * 9),
        ({"warmup": 1, "milestones": (2,)}, [0.2, 0.4, 0.6] + [0.8] * 3 + [0.08] * 6),
    ],
    ids=["half and three quarters", "epochs", "a share", "after a warmup"],
)
def test_steps_fall_at_their_milestones(options, expected):
    assert _rates(_recipe("step", **options), 3) == pytest.approx(expected)


def test_a_plateau_lowers_the_rate_when_the_loss_has_stopped_falling():
    recipe = _recipe("plateau", epochs=6, patience=1, gamma=0.5)
    rates = _rates(recipe, 2, losses=[1.0, 0.9, 0.95, 0.91, 0.92, 0.93])
    # The fourth epoch is the second without a lower loss, the sixth the second after that.
    assert rates == pytest.approx([0.8] * 8 + [0.4] * 4)


def test_a_plateau_is_not_looked_for_during_the_warmup():
    recipe = _recipe("plateau", epochs=5, patience=0, gamma=0.5, warmup=2)
    rates = _rates(recipe, 2, losses=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert rates == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


def test_one_cycle_rises_to_its_rate_and_falls_to_nothing():
    rates = _rates(_recipe("one-cycle"), 5)
    assert rates[0] == pytest.approx(0.8 / 25)
    assert (max(rates), rates.index(max(rates))) == (pytest.approx(0.8), 5)
    assert rates[-1] < 0.8 / 25 / 50
    for warmup in (1, 2.4):
        rates = _rates(_recipe("one-cycle", warmup=warmup), 5)
        assert (max(rates), rates.index(max(rates))) == (pytest.approx(0.8), 5 * warmup)


@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(2, 1, 1), (1, 3, 0.4), (2, 2, 1.9), (1, 1, 0.5)])
def test_a_cycle_of_a_few_steps_has_rates(epochs, steps, warmup):
    rates = _rates(_recipe("one-cycle", epochs=epochs, warmup=warmup), steps)
    assert all(0 < rate <= 0.8 for rate in rates)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "step", "plateau", "constant"])
def test_a_group_has_a_rate_of_its_own(schedule):
    ours, half = (_rates(_recipe(schedule, warmup=1), 4, lr=lr) for lr in (0.8, 0.4))
    assert half == pytest.approx([rate / 2 for rate in ours])
