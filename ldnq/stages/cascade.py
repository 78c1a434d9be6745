"""L-DNQ's cascade update (AAAI 2019, section 3.4): what is still float learns to make up for what is not."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq import ranks, tensorboard
from ldnq.calibration import CalibrationImages
from ldnq.errors import TrainingError
from ldnq.progress import track
from ldnq.quantized import QuantizationState
from ldnq.soundness import LossWatch, first_unsound
from ldnq.synchronized import synchronized

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cascade:
    """L-DNQ's cascade update (AAAI 2019): SGD of all unquantized parameters towards the teacher's logits.

    The mean squared error is minimized over augmented batches of `batch_size`, batch norm in training mode. Ends when
    the mean loss of an epoch has not fallen by a relative `gain` for `patience` epochs, and after `max_epochs`.
    """

    max_epochs: int = 8
    patience: int = 2
    gain: float = 0.01
    batch_size: int = 128
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        parameters = [parameter for parameter in state.student.parameters() if parameter.requires_grad]
        if not parameters or len(calibration) < 2:
            return state
        optimizer = torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        for module in state.student.modules():
            # Batch norm alone: dropout would only blur the target.
            module.train(isinstance(module, _BatchNorm))
        before = {name: tensor.clone() for name, tensor in state.student.state_dict().items()}
        try:
            with synchronized(state.student):
                self._train(state, optimizer, calibration, generator)
        except TrainingError as error:
            state.student.load_state_dict(before)
            log.warning("no cascade update here: %s; --no-training goes without", error)
        state.student.eval()
        return state

    def _train(
        self,
        state: QuantizationState,
        optimizer: torch.optim.Optimizer,
        calibration: CalibrationImages,
        generator: torch.Generator,
    ) -> None:
        losses = self._losses(state, optimizer, calibration.random_batches(self.batch_size, generator))
        steps = -(-len(calibration) // self.batch_size)
        best, stale = float("inf"), 0
        for _ in track(range(self.max_epochs), "cascade update"):
            epoch = list(islice(losses, steps))
            if not epoch:
                break
            mean = sum(epoch) / len(epoch)
            log.debug("cascade loss %.5f", mean)
            tensorboard.scalar("cascade/loss", mean)
            stale = 0 if mean < best * (1 - self.gain) else stale + 1
            best = min(best, mean)
            if stale == self.patience:
                break
        if name := first_unsound(state.student):
            raise TrainingError(f"{name} is not finite after it")

    def _losses(
        self, state: QuantizationState, optimizer: torch.optim.Optimizer, batches: Iterator[Tensor]
    ) -> Iterator[float]:
        watch = None
        for step, batch in enumerate(batches, 1):
            if len(batch) == 1:
                continue  # batch norm has no variance of one sample
            own, weight = ranks.share_of_batch(len(batch))
            with torch.no_grad():
                target = state.teacher(batch[own])
            with torch.enable_grad():
                loss = weight * F.mse_loss(state.student(batch[own]), target)
            if not loss.requires_grad:
                return  # what is left to train has no part in the output
            optimizer.zero_grad()
            loss.backward()
            mean = loss.detach(), weight * target.square().mean()
            ranks.sum_gradients(state.student.parameters(), *mean)
            watch = watch or LossWatch(guess=float(mean[1]))
            value = watch(mean[0], f"step {step}")
            optimizer.step()
            yield value
