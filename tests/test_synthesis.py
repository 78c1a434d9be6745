"""Synthesized images look to a network like those that it was trained on."""

import pytest
import torch
from torch import nn

from ldnq.calibration import CalibrationImages
from ldnq.errors import NetworkError
from ldnq.synthesis import Synthesis, divergences


def _teacher() -> nn.Module:
    """A network that remembers smooth bright images."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(_normalize(_smooth(400)))
        network[-1].weight.mul_(30)
        network.eval()[-1].bias -= network(_normalize(_smooth(400))).mean(0)
    return network.requires_grad_(False)


def _smooth(count: int) -> torch.Tensor:
    coarse = 150 + 30 * torch.randn(count, 3, 3, 3)
    return nn.functional.interpolate(coarse, size=12, mode="bilinear", align_corners=True).clamp(0, 255)


def _normalize(images: torch.Tensor) -> torch.Tensor:
    return (images.float() - 128) / 64


def _none() -> CalibrationImages:
    empty = torch.empty(0, 3, 12, 12, dtype=torch.uint8)
    return CalibrationImages(empty, _normalize, None, 32, torch.device("cpu"))


@torch.no_grad()
def _distance(teacher: nn.Module, images: torch.Tensor) -> float:
    """Of the features' means and deviations from those remembered, in units of the deviations."""
    x, distances = _normalize(images), []
    for module in teacher:
        if isinstance(module, nn.BatchNorm2d):
            deviation = module.running_var.sqrt()
            distances.append(((x.mean((0, 2, 3)) - module.running_mean) / deviation).abs().mean())
            distances.append((x.std((0, 2, 3)) / deviation - 1).abs().mean())
        x = module(x)
    return float(torch.stack(distances).mean())


def test_synthesized_images_have_the_remembered_statistics_and_classes():
    teacher = _teacher()
    made = Synthesis(48, steps=120, batch_size=32)(teacher, _none(), torch.Generator().manual_seed(0)).images
    assert made.shape == (48, 3, 12, 12)
    assert made.dtype == torch.uint8
    noise = (128 + 64 * torch.randn(48, 3, 12, 12)).clamp(0, 255)
    assert _distance(teacher, made) < 0.25 * _distance(teacher, noise)
    assert _distance(teacher, made) < 3 * _distance(teacher, _smooth(48))
    found = teacher(_normalize(made)).argmax(1)
    assert (found == torch.cat([torch.arange(32), torch.arange(16)]) % 4).float().mean() > 0.9


def test_synthesized_images_join_the_real_ones_and_repeat_with_the_seed():
    teacher = _teacher()
    real = CalibrationImages(_smooth(5).to(torch.uint8), _normalize, None, 32, torch.device("cpu"))
    one, two, other = (Synthesis(3, steps=2)(teacher, real, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert len(one) == 8
    assert torch.equal(one.images[:5], real.images)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)


def test_the_teacher_stays_as_it_is_and_gradients_may_be_off():
    teacher = _teacher()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with torch.no_grad():
        Synthesis(3, steps=2)(teacher, _none(), torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_network_without_batch_norm_remembers_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 2))
    with pytest.raises(NetworkError, match="expected batch norms"):
        Synthesis(3)(network, _none(), torch.Generator())


def test_the_divergence_is_that_of_normal_distributions():
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.copy_(torch.tensor([0.5, -1.0]))
    norm.running_var.copy_(torch.tensor([2.0, 0.3]))
    x = torch.randn(50, 2, 4, 4) * 1.5 + 0.3
    with divergences([norm]) as found:
        norm(x)
    ours = torch.distributions.Normal(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0).sqrt())
    theirs = torch.distributions.Normal(norm.running_mean, norm.running_var.sqrt())
    expected = torch.distributions.kl_divergence(ours, theirs).mean()
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-3)
