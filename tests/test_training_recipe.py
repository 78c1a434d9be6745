import pytest

from ldnq.errors import UsageError
from ldnq.training_recipe import TrainingRecipe


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 0}, "expected at least 1 epoch and batches of at least 2, got 0 and 128"),
        ({"batch_size": 1}, "expected at least 1 epoch and batches of at least 2, got 40 and 1"),
        ({"lr": 0.0}, "expected a positive learning rate, got 0.0"),
        ({"lr": float("nan")}, "expected a positive learning rate, got nan"),
        ({"weight_decay": -1}, "expected weight decay of at least 0, got -1"),
        ({"schedule": "sine"}, "expected schedule one-cycle, cosine, step, plateau, constant, got 'sine'"),
        ({"optimizer": "lion"}, "expected optimizer sgd, adam, got 'lion'"),
        ({"keep": "all"}, "expected keep last, best, got 'all'"),
        ({"momentum": 1.0}, "expected momentum of at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "expected label smoothing of at least 0 and below 1, got -0.1"),
        ({"ema": 1.5}, "expected ema of at least 0 and below 1, got 1.5"),
        ({"hold_out": 1.0}, "expected hold out of at least 0 and below 1, got 1.0"),
        ({"clip": -2.0}, "expected clip of at least 0, got -2.0"),
        ({"test_every": -1}, "expected test every of at least 0, got -1"),
        ({"temperature": 0}, "expected a positive temperature, got 0"),
        ({"distillation": 0.0}, "expected a share of distillation above 0 and at most 1, got 0.0"),
        ({"gamma": 1.0, "schedule": "step"}, "expected a gamma above 0 and below 1, got 1.0"),
        ({"milestones": (3,)}, "expected --milestones with --schedule step, got schedule one-cycle"),
        ({"gamma": 0.5}, "expected --gamma with --schedule step or plateau, got schedule one-cycle"),
        ({"patience": 3, "schedule": "step"}, "expected --patience with --schedule plateau, got schedule step"),
        ({"warmup": 40}, "expected a warmup shorter than the 40 epochs, got 40"),
        (
            {"schedule": "step", "milestones": (5, 3), "epochs": 10, "warmup": 1},
            "expected milestones that rise, after the warmup and before the end at 10 epochs, got 5, 3 with a warmup "
            "of 1",
        ),
        ({"schedule": "step", "milestones": (50, 75)}, "expected milestones that rise, after the warmup"),
        ({"schedule": "step", "milestones": (0.1,), "warmup": 5}, "got 4 with a warmup of 5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_value_that_cannot_be_used_is_refused_in_one_line(options, expected):
    with pytest.raises(UsageError) as error:
        TrainingRecipe(**options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_milestones_are_epochs_or_shares_of_them():
    recipe = TrainingRecipe(epochs=100, schedule="step", milestones=[0.5, 75])
    assert recipe.falls == (50, 75)
    assert TrainingRecipe(epochs=10, schedule="step").falls == (5, 7.5)


def test_options_for_a_teacher_need_one():
    TrainingRecipe(temperature=2.0).check_teacher(True)
    TrainingRecipe().check_teacher(False)
    with pytest.raises(UsageError, match="expected --teacher FILE with --temperature, got no teacher"):
        TrainingRecipe(temperature=2.0).check_teacher(False)
