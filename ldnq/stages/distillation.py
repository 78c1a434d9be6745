"""Distillation: codes, scales, batch norm and biases learn together to give what the teacher gives."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ldnq.augmentation import mix
from ldnq.calibration import CalibrationImages
from ldnq.graph import recorded
from ldnq.progress import track
from ldnq.quantized import QuantizationState
from ldnq.quantizers.parametrized import Trained, parameter_groups, trainable
from ldnq.quantizers.power_of_two import Rounding
from ldnq.wiring import Wiring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distillation:
    """Distillation of the whole network at once (Hinton et al., arXiv 1503.02531): `steps` of Adam on batches of
    augmented and mixed images, no labels (function matching, Beyer et al., arXiv 2106.05237).

    The loss is the divergence from the teacher's outputs, softened by `temperature`, plus `features` times the relative
    error of the residual blocks. Latent values of the codes, in units of the scale, learn at `latent_lr`, scales, batch
    norm and biases at `lr`; both fall to zero along a cosine. The result is a moving average over the steps with
    `decay`: the one of `checks`, or the start, that is nearest to the teacher on the share `held_out` of the images.
    `mixed_precision` runs the steps in bfloat16.
    """

    steps: int
    batch_size: int = 128
    latent_lr: float = 3e-3
    lr: float = 1e-3
    temperature: float = 2.0
    features: float = 1.0
    mixed: float = 0.5
    colour: float = 0.3
    decay: float = 0.99
    held_out: float = 0.1
    checks: int = 10
    mixed_precision: bool = False

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        if len(calibration) < 2:
            return state
        learning, held_out = calibration.split(self.held_out, generator)
        exam = Exam(state.teacher, held_out.views(3, generator))
        with trainable(state, Rounding) as weights:
            best = Best(state.student, exam(state.student))
            log.info("distillation starts at a loss of %.4f on held-out images", best.loss)
            average = AveragedModel(state.student, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
            for step in self._steps(state, weights, learning, generator):
                average.update_parameters(state.student)
                if step % max(1, self.steps // self.checks) == 0:
                    best.offer(average.module, exam(average.module))
            best.restore(state.student)
            log.info("distillation ends at %.4f", best.loss)
        return state

    def _steps(
        self,
        state: QuantizationState,
        weights: dict[str, Trained],
        calibration: CalibrationImages,
        generator: torch.Generator,
    ) -> Iterator[int]:
        """Train the student, and yield the number of every step when it is done."""
        optimizer = torch.optim.Adam(parameter_groups(state.student, weights, self.latent_lr, self.lr))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        blocks = Wiring(state.teacher).blocks()
        batches = self._batches(calibration, generator)
        # Nothing may be remembered of weights once cast: they change with every step.
        autocast = torch.autocast(
            calibration.device.type, torch.bfloat16, enabled=self.mixed_precision, cache_enabled=False
        )
        with recorded(state.student, blocks) as ours, recorded(state.teacher, blocks) as theirs:
            for step in track(range(1, self.steps + 1), "distilling"):
                batch = next(batches)
                with autocast, torch.no_grad():
                    target = state.teacher(batch)
                with autocast, torch.enable_grad():
                    loss = divergence(state.student(batch), target, self.temperature)
                    loss = loss + self.features * mean_relative_error(ours, theirs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                for latent, rounding in weights.values():
                    rounding.clamp(latent.data)
                yield step

    def _batches(self, calibration: CalibrationImages, generator: torch.Generator) -> Iterator[Tensor]:
        if calibration.augmentation:
            calibration = replace(calibration, augmentation=replace(calibration.augmentation, colour=self.colour))
        for batch in calibration.random_batches(self.batch_size, generator):
            yield mix(batch, self.mixed, generator)


class Exam:
    """How far a network is from `teacher` on `batches` of inputs."""

    @torch.no_grad()
    def __init__(self, teacher: nn.Module, batches: Iterable[Tensor]) -> None:
        self.questions = [(batch, teacher(batch)) for batch in batches]

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        losses = [float(divergence(module(batch), target)) for batch, target in self.questions]
        return sum(losses) / len(losses)


class Best:
    """The parameters of a network at the lowest `loss` so far."""

    def __init__(self, module: nn.Module, loss: float) -> None:
        self.loss = float("inf")
        self.offer(module, loss)

    def offer(self, module: nn.Module, loss: float) -> None:
        """Keep the parameters of `module` if `loss` is lower than that of those kept."""
        if loss < self.loss:
            self.loss = loss
            self.values = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Give `module` the parameters kept."""
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)


def divergence(outputs: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of `outputs` from `targets` (n, classes, …), both softened, in units that do not
    depend on the temperature; the relative error where there are no classes to choose from."""
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        return relative_error(outputs, targets)
    ours, theirs = (
        (logits.float() / temperature).log_softmax(1).movedim(1, -1).flatten(0, -2) for logits in (outputs, targets)
    )
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def mean_relative_error(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor | float:
    """Of those called alike that are tensors; 0 of none."""
    errors = [relative_error(outputs[name], target) for name, target in targets.items() if isinstance(target, Tensor)]
    return sum(errors) / max(1, len(errors))


def relative_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """`‖Y_t − Y‖² / ‖Y_t‖²`; a target of nothing counts as one of almost nothing."""
    outputs, targets = outputs.float(), targets.float()
    return (outputs - targets).square().sum() / targets.square().sum().clamp(min=1e-12)
