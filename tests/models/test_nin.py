"""Networks in Network have the sizes that the binary networks' repositories print, and the order of their layers."""

from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldnq.errors import UsageError
from ldnq.models import models
from ldnq.models.nin import NetworkInNetwork

NARROW = {"widths": (8, 8, 4, 8, 16, 8, 8, 8), "groups": (1, 2, 2, 4, 4, 2, 8, 2, 1)}


def build(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    module = models.get(name).build(**arguments).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "printed"), [("nin", "969.82"), ("nin-gc", "722.46")])
def test_a_float_network_has_the_printed_number_of_parameters(name, printed):
    assert f"{count(build(name)) / 1e3:.2f}" == printed


@pytest.mark.parametrize(("name", "printed"), [("nin", "674.91"), ("nin-gc", "589.85")])
def test_the_form_that_is_trained_quantized_has_the_printed_number_of_parameters(name, printed):
    family = models.get(name)
    assert f"{count(build(name, **family.quantized_args, **family.binary_args)) / 1e3:.2f}" == printed


def parts(block: nn.Sequential) -> list[str]:
    return [type(part).__name__ for part in block if not isinstance(part, nn.ChannelShuffle)]


def blocks(module: nn.Module) -> list[nn.Sequential]:
    return [part for part in module.modules() if "relu" in dict(part.named_children())]


FLOAT_ORDER, BINARY_ORDER = ["Conv2d", "BatchNorm2d", "ReLU"], ["BatchNorm2d", "Conv2d", "ReLU"]


def test_all_blocks_of_a_float_network_begin_with_their_convolution():
    assert [parts(block) for block in blocks(build("nin"))] == [FLOAT_ORDER] * 9


def test_blocks_between_the_first_and_the_last_begin_with_batch_norm_where_that_is_asked_for():
    found = [parts(block) for block in blocks(build("nin", norm_first=True))]
    assert found == [FLOAT_ORDER, *[BINARY_ORDER] * 7, FLOAT_ORDER]


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    """ShuffleNet's (arXiv 1707.01083, section 3.1)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def plain_forward(weights: dict, x: torch.Tensor, groups: tuple, norm_first: bool) -> torch.Tensor:
    """The network written out on the tensors of a checkpoint."""
    before = 1
    for layer, now in enumerate(groups):
        at = f"stage{layer // 3 + 1}.{layer % 3}"
        norm = [weights[f"{at}.norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        weight, bias = weights[f"{at}.conv.weight"], weights[f"{at}.conv.bias"]
        first = norm_first and 0 < layer < 8
        if now > 1:
            x = shuffled(x, before)
        x = F.batch_norm(x, *norm) if first else x
        x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=now)
        x = (x if first else F.batch_norm(x, *norm)).relu()
        before = now
        if layer == 2:
            x = F.max_pool2d(x, 3, 2, padding=1)
        elif layer == 5:
            x = F.avg_pool2d(x, 3, 2, padding=1)
    return x.mean((2, 3))


@pytest.mark.parametrize("norm_first", [False, True], ids=["float-form", "quantized-form"])
@pytest.mark.parametrize("side", [32, 24])
def test_a_network_computes_what_its_text_says(norm_first, side):
    module, images = build("nin-gc", norm_first=norm_first, **NARROW), torch.randn(2, 3, side, side)
    expected = plain_forward(module.state_dict(), images, NARROW["groups"], norm_first)
    torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-5)


def test_every_group_of_a_grouped_layer_sees_every_group_of_the_one_before():
    convs = [(block.conv, dict(block.named_children()).get("shuffle")) for block in blocks(build("nin-gc"))]
    for (before, _), (conv, shuffle) in pairwise(convs):
        sources = torch.arange(before.groups).repeat_interleave(before.out_channels // before.groups).view(1, -1, 1, 1)
        seen = (shuffle(sources) if shuffle else sources).view(conv.groups, -1)
        assert all(len(set(group.tolist())) == before.groups for group in seen)


@pytest.mark.parametrize("groups", [2, 3, 4, 6])
def test_a_shuffle_by_the_channels_of_a_group_undoes_the_shuffle_by_groups(groups):
    x = torch.randn(2, 12, 3, 3)
    once = nn.ChannelShuffle(groups)(x)
    assert not torch.equal(once, x)
    assert torch.equal(nn.ChannelShuffle(12 // groups)(once), x)


@pytest.mark.parametrize("norm_first", [False, True], ids=["float-form", "quantized-form"])
def test_fx_and_export_and_onnx_follow_a_network(norm_first, tmp_path):
    module, images = build("nin-gc", norm_first=norm_first, **NARROW), torch.randn(2, 3, 32, 32)
    assert torch.equal(torch.fx.symbolic_trace(module)(images), module(images))
    assert torch.equal(torch.export.export(module, (images,)).module()(images), module(images))
    torch.onnx.export(module, (images,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(found, module(images).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_another_number_of_layers_is_refused():
    with pytest.raises(UsageError, match="expected 8 widths and 9 groups, got 2 and 9"):
        NetworkInNetwork((8, 8))
