"""Distillation: codes, scales, batch norm and biases learn together to give what the teacher gives."""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ldnq import ranks, tensorboard
from ldnq.augmentation import mix
from ldnq.calibration import CalibrationImages
from ldnq.errors import TrainingError
from ldnq.graph import recorded
from ldnq.losses import divergence, mean_relative_error
from ldnq.progress import say, track
from ldnq.quantized import QuantizationState
from ldnq.quantizers.parametrized import Trained, parameter_groups, trainable
from ldnq.quantizers.power_of_two import Rounding
from ldnq.soundness import LossWatch
from ldnq.wiring import Wiring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distillation:
    """Distillation of the whole network at once (Hinton et al., arXiv 1503.02531): `steps` of Adam on batches of
    augmented and mixed images, no labels (function matching, Beyer et al., arXiv 2106.05237).

    The loss is the divergence from the teacher's outputs, softened by `temperature`, plus `features` times the relative
    error of the residual blocks. Latent values of the codes learn at the rate `travel / steps`: in units of the scale,
    how far they would come if all gradients pointed one way; scales, batch norm and biases learn at `lr`. Both rates
    rise for the share `warmup` of the steps and fall to zero along a cosine.

    Batch norm keeps the statistics it has: those of mixed images are others, and the factors that the layer-wise stage
    has fitted bring outputs nearer to the teacher's than factors that match variances. The result is a moving average
    over the steps with `decay`: the one of `checks`, or the start, that is nearest to the teacher on `views` views of
    the images held out. `mixed_precision` runs the steps in bfloat16.
    """

    steps: int
    batch_size: int = 128
    travel: float = 0.9
    lr: float = 2e-3
    warmup: float = 0.1
    temperature: float = 2.0
    features: float = 1.0
    mixed: float = 1.0
    colour: float = 0.3
    decay: float = 0.99
    views: int = 3
    checks: int = 5
    mixed_precision: bool = False

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        if calibration.held_out is None:
            log.warning("no distillation: it needs two calibration images or more, to learn from and to choose by")
            return state
        exam = Exam(state.teacher, calibration.held_out.views(self.views, generator))
        with trainable(state, Rounding) as weights:
            best = Best(state.student, exam(state.student))
            log.info("distillation starts at a loss of %.4f on held-out images", best.loss)
            average = AveragedModel(state.student, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
            try:
                for step in self._steps(state, weights, calibration, generator):
                    average.update_parameters(state.student)
                    if step % max(1, self.steps // self.checks) == 0:
                        held_out = exam(average.module)
                        best.offer(average.module, held_out)
                        say(f"loss on held-out images {best.loss:.4f}")
                        tensorboard.scalar("distillation/held-out", held_out, step)
                        tensorboard.histograms(state.student, step)
            except TrainingError as error:
                log.warning("distillation ends early: %s; the best network so far is kept", error)
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
        optimizer = torch.optim.Adam(parameter_groups(state.student, weights, self.travel / self.steps, self.lr))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        blocks = Wiring(state.teacher).blocks()
        watch = LossWatch()
        batches, autocast = self._batches(calibration, generator), self._autocast(calibration.device)
        with recorded(state.student, blocks) as ours, recorded(state.teacher, blocks) as theirs:
            for step in track(range(1, self.steps + 1), "distilling"):
                batch = next(batches)
                own, weight = ranks.share_of_batch(len(batch))
                with autocast, torch.no_grad():
                    target = state.teacher(batch[own])
                with autocast, torch.enable_grad():
                    loss = divergence(state.student(batch[own]), target, self.temperature)
                    loss = weight * (loss + self.features * mean_relative_error(ours, theirs))
                optimizer.zero_grad()
                loss.backward()
                loss = loss.detach()
                ranks.sum_gradients(state.student.parameters(), loss)
                watch(loss, f"step {step} of {self.steps}")
                optimizer.step()
                schedule.step()
                tensorboard.scalar("distillation/loss", loss, step)
                for latent, rounding in weights.values():
                    rounding.clamp(latent.data)
                yield step

    def _autocast(self, device: torch.device) -> torch.autocast:
        # Nothing may be remembered of weights once cast: they change with every step.
        return torch.autocast(device.type, torch.bfloat16, enabled=self.mixed_precision, cache_enabled=False)

    def _rate(self, step: int) -> float:
        """The share of the learning rates at `step`."""
        rise = min(1.0, (step + 1) / (self.warmup * self.steps)) if self.warmup else 1.0
        return rise * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _batches(self, calibration: CalibrationImages, generator: torch.Generator) -> Iterator[Tensor]:
        if calibration.augmentation:
            calibration = replace(calibration, augmentation=replace(calibration.augmentation, colour=self.colour))
        for batch in calibration.random_batches(self.batch_size, generator):
            yield mix(batch, self.mixed, generator)


class Exam:
    """How far a network is from `teacher` on `batches` of inputs, which are dealt to the processes."""

    @torch.no_grad()
    def __init__(self, teacher: nn.Module, batches: Iterable[Tensor]) -> None:
        self.questions = [(batch, teacher(batch)) for batch in ranks.mine(batches)]

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        losses = [float(divergence(module(batch), target)) for batch, target in self.questions]
        total, count = ranks.total(sum(losses), len(losses))
        return total / count


class Best:
    """What a network was at the lowest `loss` so far."""

    def __init__(self, module: nn.Module, loss: float) -> None:
        self._keep(module, loss)

    def offer(self, module: nn.Module, loss: float) -> None:
        """Keep what `module` is now if `loss` is lower than that of what is kept."""
        if loss < self.loss:
            self._keep(module, loss)

    def _keep(self, module: nn.Module, loss: float) -> None:
        self.loss = loss
        self.values = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def restore(self, module: nn.Module) -> None:
        """Make `module` what is kept."""
        module.load_state_dict(self.values)
