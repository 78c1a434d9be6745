"""Images made from what a network remembers of its training images: the mean and variance of its features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq import runtime
from ldnq.calibration import CalibrationImages
from ldnq.errors import NetworkError
from ldnq.progress import track
from ldnq.soundness import LossWatch

# Pixels.
SHIFT = 2


@dataclass(frozen=True)
class Synthesis:
    """DeepInversion (Yin et al., arXiv 1912.08795, equations 2 to 5): `count` images, by `steps` of Adam from noise, of
    all classes in turn, whose features have the mean and the variance that every batch norm remembers.

    How far features are from that is measured by the divergence of normal distributions, in which, other than in the
    paper's norm of the differences, every layer and channel counts the same. `statistics` and `smoothness` weigh it and
    the images' total variation beside the cross-entropy. `lr` is in pixel values of 0 … 255.
    """

    count: int
    steps: int = 300
    batch_size: int = 128
    lr: float = 6.0
    statistics: float = 1.0
    smoothness: float = 1e-3
    mixed_precision: bool = False

    def __call__(
        self, teacher: nn.Module, calibration: CalibrationImages, generator: torch.Generator
    ) -> CalibrationImages:
        """`calibration`, uint8 images or none yet, with these images more.

        Raises `NetworkError` where `teacher` has no batch norm that remembers anything.
        """
        norms = [
            module for module in teacher.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        if not norms:
            raise NetworkError("expected batch norms to synthesize images from, found none: use real images")
        shape = calibration.images.shape[1:]
        made = []
        for chosen in track(torch.arange(self.count).split(self.batch_size), "synthesizing images"):
            noise = 128 + 64 * torch.randn(len(chosen), *shape, generator=generator)
            loss = partial(self._loss, teacher, norms, calibration, generator)
            made.append(self._descend(noise.to(calibration.device), loss))
        return replace(calibration, images=torch.cat([calibration.images, *made]))

    def _descend(self, noise: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Pixels (n, 3, h, w) uint8 of low `loss`, from `noise`."""
        pixels = noise.contiguous(memory_format=runtime.LAYOUT).requires_grad_(True)
        optimizer = torch.optim.Adam([pixels], self.lr, betas=(0.5, 0.9))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        watch = LossWatch()
        for step in track(range(self.steps), "synthesizing a batch"):
            optimizer.zero_grad()
            with torch.enable_grad():
                value = loss(pixels)
            watch(value, f"step {step + 1} of {self.steps} of synthesis: use real images")
            value.backward()
            optimizer.step()
            schedule.step()
            pixels.data.clamp_(0, 255)
        return pixels.detach().round().to(torch.uint8).contiguous().cpu()

    def _loss(
        self,
        teacher: nn.Module,
        norms: list[_BatchNorm],
        calibration: CalibrationImages,
        generator: torch.Generator,
        pixels: Tensor,
    ) -> Tensor:
        view = calibration.normalize(_jitter(pixels, generator))
        autocast = torch.autocast(view.device.type, torch.bfloat16, enabled=self.mixed_precision)
        with autocast, divergences(norms) as found:
            output = teacher(view)
        loss = self.statistics * torch.stack(found).mean() + self.smoothness * _variation(view)
        if output.dim() == 2 and output.shape[1] > 1:
            classes = torch.arange(len(output), device=output.device) % output.shape[1]
            loss = loss + F.cross_entropy(output.float(), classes)
        return loss


@contextmanager
def divergences(norms: list[_BatchNorm]) -> Iterator[list[Tensor]]:
    """While inside, how far the inputs of each of `norms` in a pass are from what it remembers: the mean over channels
    of the divergence `½ (s/v + (m − μ)²/v − 1 − ln s/v)` of the normal distribution of their mean m and variance s from
    that of the running mean μ and variance v."""
    found: list[Tensor] = []

    def hook(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float().transpose(0, 1).flatten(1)
        remembered = norm.running_var + norm.eps
        ratio = (x.var(1, correction=0) + norm.eps) / remembered
        offset = (x.mean(1) - norm.running_mean).square() / remembered
        found.append(((ratio + offset - 1 - ratio.log()) / 2).mean())

    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """All images shifted alike by a few pixels, round the edge, and mirrored every second time."""
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    images = images.roll((down, right), (2, 3))
    return images.flip(3) if torch.rand((), generator=generator) < 0.5 else images


def _variation(images: Tensor) -> Tensor:
    """Squared differences of neighbouring pixels, summed over an image."""
    differences = images.diff(dim=2).square().sum((1, 2, 3)) + images.diff(dim=3).square().sum((1, 2, 3))
    return differences.mean()
