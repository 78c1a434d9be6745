"""The pre-activation ResNets are those of the paper, and of the repositories that have its blocks."""

from fnmatch import fnmatch

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldnq.errors import UsageError
from ldnq.folding import fold_batch_norms
from ldnq.models import models
from ldnq.models.preact_resnet import BasicBlock, Bottleneck, PreActResNet
from ldnq.wiring import Wiring


def moved(module: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return module.eval()


def build(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return moved(models.get(name).build(**arguments))


def small_bottlenecks() -> nn.Module:
    """ResNet-50's stem and blocks, few and narrow."""
    torch.manual_seed(0)
    stem = {"conv1": nn.Conv2d(3, 4, 7, 2, padding=3, bias=False), "maxpool": nn.MaxPool2d(3, 2, padding=1)}
    return moved(PreActResNet(stem, Bottleneck, (2, 1), width=4, num_classes=10))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolutions_and_norms(blocks: list[list[tuple[int, int, int]]], stem: int, last: int, classes: int) -> int:
    """Parameters of a network of these (inputs, outputs, kernel size), a batch norm before each, without shortcuts."""
    inner = sum(i * o * k * k + 2 * i for block in blocks for i, o, k in block)
    return stem + inner + 2 * last + last * classes + classes


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_network_of_20_layers_has_the_parameters_that_the_paper_comes_to(factor):
    a, b, c = 16 * factor, 32 * factor, 64 * factor
    widths = [(a, a), (a, a), (a, a), (a, b), (b, b), (b, b), (b, c), (c, c), (c, c)]
    blocks = [[(i, o, 3), (o, o, 3)] for i, o in widths]
    expected = convolutions_and_norms(blocks, 3 * 9 * a, c, 10) + a * b + b * c
    assert count(build("preact-resnet20", factor=factor)) == expected


def test_the_widths_of_any_precision_networks_are_80_and_160_and_320():
    module = build("preact-resnet20", factor=5)
    assert [module.get_submodule(f"layer{n}.2.conv2").out_channels for n in (1, 2, 3)] == [80, 160, 320]


def test_a_network_of_50_layers_has_the_parameters_that_the_paper_comes_to():
    blocks, shortcuts, inputs = [], 0, 64
    for channels, number in ((64, 3), (128, 4), (256, 6), (512, 3)):
        shortcuts += inputs * 4 * channels
        for _ in range(number):
            blocks.append([(inputs, channels, 1), (channels, channels, 3), (channels, 4 * channels, 1)])
            inputs = 4 * channels
    expected = convolutions_and_norms(blocks, 3 * 49 * 64, 2048, 1000) + shortcuts
    with torch.device("meta"):
        assert count(models.get("preact-resnet50").build()) == expected == 25_549_352


def test_a_network_of_50_layers_has_the_convolutions_of_torchvisions():
    def shapes(module: nn.Module) -> list[tuple]:
        convs = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
        return sorted((tuple(conv.weight.shape), conv.stride, conv.padding) for conv in convs)

    with torch.device("meta"):
        ours, theirs = (models.get(name).build() for name in ("preact-resnet50", "resnet50"))
    assert shapes(ours) == shapes(theirs)


def plain_forward(weights: dict, x: torch.Tensor, large: bool) -> torch.Tensor:
    """The network written out on the tensors of a checkpoint, after figure 1 (b) of the paper."""

    def active(name, x):
        norm = (weights[f"{name}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *norm).relu()

    first = weights["conv1.weight"]
    x = F.conv2d(x, first, stride=2 if large else 1, padding=first.shape[-1] // 2)
    x = F.max_pool2d(x, 3, 2, padding=1) if large else x
    blocks = dict.fromkeys(name.rpartition(".conv")[0] for name in weights if ".conv" in name)
    for at in blocks:
        stride = 2 if at.endswith(".0") and not at.startswith("layer1.") else 1
        convs = sorted(name for name in weights if name.startswith(f"{at}.conv"))
        out = x
        for number, name in enumerate(convs, 1):
            out = active(f"{at}.bn{number}", out)
            if number == 1 and f"{at}.shortcut.weight" in weights:
                x = F.conv2d(out, weights[f"{at}.shortcut.weight"], stride=stride)
            size = weights[name].shape[-1]
            # Basic blocks halve the image at their first convolution, bottlenecks at their 3x3 one.
            here = stride if size == 3 and (number == 1 or len(convs) == 3) else 1
            out = F.conv2d(out, weights[name], stride=here, padding=size // 2)
        x = x + out
    return F.linear(active("bn", x).mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


@pytest.mark.parametrize(
    ("make", "large", "side"),
    [(lambda: build("preact-resnet20"), False, 32), (small_bottlenecks, True, 64)],
    ids=["basic-blocks", "bottlenecks"],
)
def test_a_network_computes_what_the_paper_says(make, large, side):
    module, images = make(), torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = plain_forward(module.state_dict(), images, large)
        torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("block", "outputs"), [(BasicBlock, 8), (Bottleneck, 32)], ids=["basic", "bottleneck"])
def test_nothing_touches_what_a_block_without_a_change_of_shape_passes_by(block, outputs):
    module = block(outputs, 8, 1)
    for name, part in module.named_modules():
        if name.startswith("conv"):
            nn.init.zeros_(part.weight)
    x = torch.randn(2, outputs, 4, 4)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("name", ["preact-resnet20", "preact-resnet50"])
def test_shortcuts_of_convolutions_stay_float_in_low_bit_training(name):
    with torch.device("meta"):
        module = models.get(name).build()
    convs = [at for at, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    globs = models.get(name).stay_float
    kept = [at for at in convs if any(fnmatch(at, glob) for glob in globs)]
    assert kept == [at for at in convs if module.get_submodule(at).kernel_size == (1, 1) and "conv" not in at]
    assert len(kept) == (2 if name == "preact-resnet20" else 4)


def test_batch_norms_are_found_behind_all_but_the_last_convolution_of_a_block_and_blocks_as_such():
    wiring = Wiring(build("preact-resnet20"))
    assert wiring.batch_norm_after("layer2.1.conv1") == "layer2.1.bn2"
    assert wiring.batch_norm_after("layer2.1.conv2") is None
    assert wiring.blocks() == [f"layer{layer}.{block}" for layer in (1, 2, 3) for block in range(3)]


def test_batch_norms_behind_a_convolution_become_part_of_it_and_those_behind_a_sum_stay():
    module, images = build("preact-resnet20"), torch.randn(2, 3, 32, 32)
    folded, _ = fold_batch_norms(module, {}, images)
    stay = [name for name, part in folded.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert stay == [name for name, part in module.named_modules() if name.endswith(".bn1") or name == "bn"]
    torch.testing.assert_close(folded(images), module(images), rtol=1e-3, atol=1e-3)


def test_export_follows_a_network():
    module, images = small_bottlenecks(), torch.randn(2, 3, 64, 64)
    assert torch.equal(torch.export.export(module, (images,)).module()(images), module(images))


@pytest.mark.parametrize("factor", [0, -1, 1.5, "wide"])
def test_another_width_is_refused(factor):
    with pytest.raises(UsageError, match=rf"expected a width factor of 1, 2, 3, …, got {factor!r}"):
        build("preact-resnet20", factor=factor)
