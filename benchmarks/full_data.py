"""Training on all images: the ceiling for what can be had from one percent of them."""

from dataclasses import dataclass

import torch

from ldnq.calibration import CalibrationImages
from ldnq.losses import divergence
from ldnq.progress import track
from ldnq.quantized import QuantizationState
from ldnq.quantizers.parametrized import parameter_groups, trainable
from ldnq.quantizers.power_of_two import Rounding


@dataclass(frozen=True)
class FullDataTraining:
    """Straight-through training (Bengio et al., arXiv 1308.3432) of codes, scales and batch norm on `everything`: Adam
    for `epochs`, rates falling along a cosine, batch statistics, the teacher's outputs as targets.

    `latent_lr` is in units of the scale.
    """

    everything: CalibrationImages
    epochs: int = 8
    batch_size: int = 128
    latent_lr: float = 3e-3
    lr: float = 1e-3
    mixed_precision: bool = False

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        batches = self.everything.random_batches(self.batch_size, generator)
        steps = self.epochs * -(-len(self.everything) // self.batch_size)
        autocast = torch.autocast(
            self.everything.device.type, torch.bfloat16, enabled=self.mixed_precision, cache_enabled=False
        )
        with trainable(state, Rounding) as weights:
            optimizer = torch.optim.Adam(parameter_groups(state.student, weights, self.latent_lr, self.lr))
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            state.student.train()
            for _ in track(range(steps), "training on all images"):
                batch = next(batches)
                with autocast, torch.no_grad():
                    target = state.teacher(batch)
                with autocast, torch.enable_grad():
                    loss = divergence(state.student(batch), target, temperature=2.0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                for latent, rounding in weights.values():
                    rounding.clamp(latent.data)
            state.student.eval()
        return state
