"""The network for house numbers is that of the paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldnq.errors import UsageError
from ldnq.models import models
from ldnq.wiring import Wiring


def build(**arguments) -> nn.Module:
    torch.manual_seed(0)
    module = models.get("svhn-net").build(**arguments).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize(("expansion", "expected"), [(2, 131_930), (8, 2_081_354)])
def test_a_network_has_the_parameters_that_the_paper_comes_to(expansion, expected):
    e = expansion
    first, last = 3 * 25 * 6 * e + 6 * e, 64 * e * 10 + 10
    threes = sum(9 * i * o * e * e + 2 * o * e for i, o in ((6, 8), (8, 8), (8, 16), (16, 16), (16, 16)))
    assert first + threes + 25 * 16 * 64 * e * e + last == expected
    assert sum(parameter.numel() for parameter in build(expansion=e).parameters()) == expected


def test_the_width_is_that_of_any_precision_networks_unless_another_is_asked_for():
    assert build().linear.in_features == 128


def plain_forward(weights: dict, x: torch.Tensor) -> torch.Tensor:
    """The network written out on the tensors of a checkpoint."""

    def block(number, x, padding):
        at = f"features.{number}"
        norm = [weights[f"{at}.bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(F.conv2d(x, weights[f"{at}.conv.weight"], padding=padding), *norm)

    x = F.max_pool2d(F.conv2d(x, weights["features.0.conv.weight"], weights["features.0.conv.bias"]), 2).relu()
    assert x.shape[2:] == (18, 18)
    x = block(1, x, 1).relu()
    x = F.max_pool2d(block(2, x, 1), 2).relu()
    assert x.shape[2:] == (9, 9)
    x = block(3, x, 0).relu()
    x = block(4, x, 1).relu()
    x = block(5, x, 0).relu()
    assert x.shape[2:] == (5, 5)
    x = F.conv2d(x, weights["features.6.conv.weight"]).relu()
    assert x.shape[2:] == (1, 1)
    return F.linear(x.flatten(1), weights["linear.weight"], weights["linear.bias"])


def test_a_network_computes_what_the_paper_says():
    module, images = build(expansion=1), torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(module(images), plain_forward(module.state_dict(), images), rtol=1e-4, atol=1e-5)


def test_half_of_what_the_last_convolution_sees_is_dropped_in_training():
    module, seen = build(expansion=1).train(), []
    module.features[6].conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.features[5].relu.register_forward_hook(lambda *_: torch.ones(64, 16, 5, 5))
    module(torch.randn(64, 3, 40, 40))
    assert set(seen[0].unique().tolist()) == {0, 2}
    assert 0.49 < (seen[0] == 0).float().mean() < 0.51


def test_batch_norms_are_found_behind_the_convolutions_that_have_one():
    wiring = Wiring(build(expansion=1))
    found = [wiring.batch_norm_after(f"features.{block}.conv") for block in range(7)]
    assert found == [None, *(f"features.{block}.bn" for block in range(1, 6)), None]


def test_images_of_its_usual_dataset_are_enlarged_to_40_pixels():
    family = models.get("svhn-net")
    assert (family.image_size, family.resize, family.default_dataset) == (40, None, "svhn")


@pytest.mark.parametrize("expansion", [0, 2.5, "wide"])
def test_another_width_is_refused(expansion):
    with pytest.raises(UsageError, match=rf"expected an expansion of 1, 2, 3, …, got {expansion!r}"):
        build(expansion=expansion)
