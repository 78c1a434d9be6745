"""Block reconstruction: the codes of a residual block change together, until its output is the teacher's."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldnq import ranks, tensorboard
from ldnq.calibration import CalibrationImages
from ldnq.curvature import channel_curvature
from ldnq.errors import TrainingError
from ldnq.graph import run_to
from ldnq.progress import say, track
from ldnq.quantized import QuantizationState
from ldnq.quantizers.parametrized import Trained, parameter_groups, trainable
from ldnq.quantizers.soft_assignment import SoftAssignment
from ldnq.soundness import LossWatch
from ldnq.wiring import Wiring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockReconstruction:
    """Reconstruction of one residual block after the other (BRECQ, arXiv 2102.05426): `steps` of Adam on batches of the
    block's inputs, all its weights softly assigned to two levels each (AdaRound, arXiv 2004.10568).

    Latent values learn at `latent_lr`, scales, batch norm and biases at `lr`. A share `mixed` of the values of the
    inputs is the teacher's, the rest the student's (QDrop, arXiv 2203.05740). The temperature of the assignment falls
    from 1 to `coldest`. Inputs are those of the images and of `views` random views of each; a block that has not come
    nearer to the teacher on those of the images held out stays as it was. `mixed_precision` runs the steps in bfloat16.
    """

    steps: int
    batch_size: int = 64
    latent_lr: float = 2e-2
    lr: float = 1e-3
    mixed: float = 0.5
    coldest: float = 0.02
    views: int = 3
    mixed_precision: bool = False

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        if calibration.held_out is None:
            log.warning(
                "no block reconstruction: it needs two calibration images or more, to learn from and to choose by"
            )
            return state
        names = [name for name in Wiring(state.teacher).blocks() if _weights(state, name)]
        if not names:
            log.warning("no residual blocks found: layers stay as they were quantized, one by one")
        for name in track(names, "reconstructing blocks", str):
            curvature = channel_curvature(state.teacher, name, calibration.batches(), generator)
            task, exam = (
                Task.gather(state, name, images.views(self.views, generator), curvature)
                for images in (calibration, calibration.held_out)
            )
            self._reconstruct(state, name, task, exam, generator)
        return state

    def _reconstruct(
        self, state: QuantizationState, name: str, task: "Task", exam: "Task", generator: torch.Generator
    ) -> None:
        codes = {weight: state.weights[weight] for weight in _weights(state, name)}
        before = {key: tensor.clone() for key, tensor in task.block.state_dict().items()}
        with torch.no_grad():
            start = float(exam.error())
        with trainable(state, SoftAssignment, codes) as weights:
            try:
                self._train(task, weights, generator)
            except TrainingError as error:
                log.warning("block %s stays as it was: %s", name, error)
        with torch.no_grad():
            end = ranks.agreed(lambda: float(exam.error()))
        say(f"relative error {end:.4f}, was {start:.4f}")
        if not end < start:
            task.block.load_state_dict(before)
            state.weights.update(codes)

    def _train(self, task: "Task", weights: dict[str, Trained], generator: torch.Generator) -> None:
        optimizer = torch.optim.Adam(parameter_groups(task.block, weights, self.latent_lr, self.lr))
        autocast = torch.autocast(
            task.targets.device.type, torch.bfloat16, enabled=self.mixed_precision, cache_enabled=False
        )
        watch = LossWatch()
        for step in range(self.steps):
            for _, quantizer in weights.values():
                quantizer.temperature = self.coldest ** (step / self.steps)
            chosen = torch.randint(len(task.targets), (self.batch_size,), generator=generator)
            own, weight = ranks.share_of_batch(self.batch_size)
            with autocast, torch.enable_grad():
                loss = weight * task.error(chosen, self.mixed, generator, own)
            optimizer.zero_grad()
            loss.backward()
            loss = loss.detach()
            ranks.sum_gradients(task.block.parameters(), loss)
            watch(loss, f"step {step + 1} of {self.steps}")
            optimizer.step()
            tensorboard.scalar("blocks/loss", loss)


@dataclass(frozen=True)
class Task:
    """A `block` of the student, its inputs in both networks, the teacher's outputs as `targets`, each (n, channels, …),
    and the `curvature` that weighs the error of a channel, in the shape of one sample."""

    block: nn.Module
    inputs: Tensor
    teacher_inputs: Tensor
    targets: Tensor
    curvature: Tensor

    @classmethod
    def gather(cls, state: QuantizationState, name: str, batches: Iterable[Tensor], curvature: Tensor) -> "Task":
        """The task of the block called `name` on `batches` of network inputs."""
        inputs, teacher_inputs, targets = [], [], []
        for batch in batches:
            inputs += [x for x, _ in run_to(state.student, name, batch)]
            for x, y in run_to(state.teacher, name, batch):
                teacher_inputs.append(x)
                targets.append(y)
        block = state.student.get_submodule(name)
        return cls(block, torch.cat(inputs), torch.cat(teacher_inputs), torch.cat(targets), curvature)

    def error(
        self,
        chosen: Tensor | slice = slice(None),
        mixed: float = 0.0,
        generator: torch.Generator | None = None,
        own: slice = slice(None),
    ) -> Tensor:
        """The relative error of the output on the `chosen` samples, a share `mixed` of the inputs from the teacher; of
        the samples those that are this process's `own`."""
        inputs = self.inputs[chosen]
        if mixed:
            from_teacher = torch.rand(inputs.shape, generator=generator) < mixed
            inputs = torch.where(from_teacher.to(inputs.device), self.teacher_inputs[chosen], inputs)
        outputs, targets = self.block(inputs[own]).float(), self.targets[chosen][own].float()
        return ((outputs - targets).square() * self.curvature).sum() / (targets.square() * self.curvature).sum()


def _weights(state: QuantizationState, block: str) -> list[str]:
    return [name for name in state.weights if name.startswith(f"{block}.")]
