import pytest
import torch
from torch import nn

from ldnq import quantize
from ldnq.errors import NetworkError, TrainingError
from ldnq.soundness import EXPLODED, LossWatch, check_weights


def _network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip


RECIPES = {
    "paper": dict(preset="paper"),
    "nearest": dict(preset="paper", solver="nearest", training=False),
    "fast": dict(preset="fast"),
    "sensitivities": dict(preset="fast", kbits="auto", target_bits=2.0),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@every_recipe
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30], ids=str)
def test_unusable_inputs_are_refused_at_the_first_layer(recipe, value):
    x = torch.randn(20, 3, 6, 6)
    x[13, 1, 2, 2] = value
    with pytest.raises(NetworkError, match=r"expected values under 1e19 on the calibration images, .* at layer 0: "):
        quantize(_network(), [x], **{"kbits": 3} | recipe)


@every_recipe
def test_values_that_overflow_are_refused_at_the_layer_that_they_reach(recipe):
    network = _network()
    network[1].weight.data.fill_(1e25)
    with pytest.raises(NetworkError, match="found NaN, infinity or more at layer 3: "):
        quantize(network, [torch.randn(20, 3, 6, 6)], **{"kbits": 3} | recipe)


@every_recipe
@pytest.mark.parametrize("name", ["3.weight", "3.bias", "1.running_var"])
def test_unusable_weights_are_refused_by_their_name(recipe, name):
    network = _network()
    network.state_dict()[name].view(-1)[1] = float("nan")
    with pytest.raises(NetworkError, match=f"expected finite weights, found NaN or infinity in {name}: "):
        quantize(network, [torch.randn(20, 3, 6, 6)], **{"kbits": 3} | recipe)


def test_infinite_weights_are_no_finite_ones():
    layer = nn.Linear(2, 2)
    check_weights(layer)
    layer.bias.data[0] = -float("inf")
    with pytest.raises(NetworkError, match="in bias"):
        check_weights(layer)


def test_losses_may_rise_but_not_explode():
    watch = LossWatch()
    for loss in (0.1, 5.0, 0.99 * EXPLODED):
        assert watch(torch.tensor(loss), "step 1") == pytest.approx(loss)
    with pytest.raises(TrainingError, match=r"the loss is 1.01e\+03 at step 2"):
        watch(torch.tensor(1.01 * EXPLODED), "step 2")


def test_a_loss_may_be_as_large_as_the_first_or_as_a_guess():
    LossWatch(guess=1e6)(torch.tensor(1e8), "step 1")
    watch = LossWatch()
    watch(torch.tensor(1e6), "step 1")
    watch(torch.tensor(1e8), "step 2")


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("before", [[], [1.0]], ids=["at first", "later"])
def test_a_loss_that_is_no_number_is_refused(value, before):
    watch = LossWatch()
    for loss in before:
        watch(torch.tensor(loss), "step 1")
    with pytest.raises(TrainingError, match=f"the loss is {value} at step 9"):
        watch(torch.tensor(value), "step 9")
