"""Layer after layer in execution order: moments of its inputs, a problem, a solver, the weights written and frozen."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor

from ldnq import ranks, runtime
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.curvature import sensitivities
from ldnq.graph import KINDS, Layer, find_layers
from ldnq.joints import Joints
from ldnq.moments import Moments, gather_moments
from ldnq.problem import Solver, least_squares
from ldnq.progress import say, track
from ldnq.quantized import QuantizationState
from ldnq.stages.cascade import Cascade
from ldnq.stages.reconstruction import Reconstruction
from ldnq.stages.selection import check_patterns, choose_layers
from ldnq.store import Store
from ldnq.walk import Walk

log = logging.getLogger(__name__)
T = TypeVar("T")

# Of the size of the widest layer's Gram matrix: what gathering it and solving the layer takes.
MATRICES = 12
# More, made up by random views, hardly improve the moments.
SAMPLES = 500
# Of the sensitivity of an output to itself, as a share of the layer's mean.
FLOOR = 1e-4


@dataclass(frozen=True)
class Course:
    """The way that a stage goes: `layers` in their order, how they are joined, how the network feels their outputs, by
    their names, and the passes of this process's batches, of so many `images` in all, through student and teacher."""

    layers: Sequence[Layer]
    joints: Joints
    felt: Mapping[str, Tensor]
    images: int
    walks: Callable[[], Iterable[tuple[Walk, Walk]]]


@dataclass(frozen=True)
class Layerwise:
    """Layer-wise quantization, L-DNQ (AAAI 2019), Algorithm 1: each layer by `solver` on the Gram matrix of its inputs
    in the partly quantized network, then `cascade` if there is one.

    `codebooks` are those of layers whose names match a glob, the last one of several; other layers have `codebook`.
    `skip` are globs of layer names that stay float; `keep_first_last` adds the first and the last layer.
    `quantize_bias` puts the bias of linear layers on the same codebook and scale, as one more weight.

    L-DNQ reconstructs what the teacher's weights would make of the student's inputs. With `asymmetric` it is the
    teacher's own output, plus what the other branch of a residual block lacks: the weights are first moved to the
    least-squares optimum (damped by `damping`), and batch norm or bias take up what is left of offset and gain. The
    moments are then those of the images and of `views` random views of each, None for as many as make `SAMPLES`; of a
    layer's positions they take `gram_samples` or up to twice as many, of whole images. Errors of two outputs that the
    network feels together make up for each other: `coupling` is the share of their joint sensitivity that the solver
    is told of (YAQA, arXiv 2505.22988), found by `draws` gradients of each of up to `felt` images.
    """

    solver: Solver
    codebook: Codebook
    codebooks: Mapping[str, Codebook] = field(default_factory=dict)
    per_channel: bool = False
    quantize_bias: bool = False
    skip: tuple[str, ...] = ()
    keep_first_last: bool = False
    cascade: Cascade | None = None
    asymmetric: bool = False
    damping: float = 0.01
    views: int | None = 0
    coupling: float = 0.0
    draws: int = 1
    felt: int = 250
    gram_samples: float = float("inf")

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        course = self.prepare(state, calibration, generator)
        state.journal.catch_up(generator)
        finished = {result.layer.name for result in state.results}
        for layer in track(course.layers, "quantizing layers", _title):
            if layer.name in finished:
                continue
            codebook = last_match(self.codebooks, layer.name, self.codebook)
            result = self.reconstruction(state, layer, course)(self.solver, codebook, state)
            state.results.append(result)
            mean = sum(result.relative_error for result in state.results) / len(state.results)
            say(f"relative error {result.relative_error:.4f}, mean so far {mean:.4f}")
            if self.cascade:
                state = self.cascade(state, calibration, generator)
            state.journal.note(state, generator)
            runtime.release_memory()
        return state

    def prepare(self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator) -> Course:
        """What has to be known before the first layer; those that stay float are noted in `state`."""
        found, unfit = find_layers(state.student, next(iter(calibration.batches()))[:2])
        layers, skipped = choose_layers(found, self.skip, "--keep-first-last" if self.keep_first_last else "")
        check_patterns("--kbits-for", self.codebooks, layers)
        state.skipped = [*unfit, *skipped]
        joints = Joints(state.student, state.teacher)
        felt = self._sensitivities(state, layers, calibration, generator)
        images = len(calibration) * (1 + self._views(calibration))
        return Course(layers, joints, felt, images, self._walks(joints, calibration, generator))

    def _walks(
        self, joints: Joints, calibration: CalibrationImages, generator: torch.Generator
    ) -> Callable[[], Iterable[tuple[Walk, Walk]]]:
        """The passes of batches through student and teacher, for one layer after the other."""

        def start(store: Store) -> Iterator[tuple[Walk, Walk]]:
            for batch in ranks.mine(calibration.views(self._views(calibration), generator)):
                held = store.hold({"batch": batch})
                yield Walk(joints.student, held, store), Walk(joints.teacher, held, store)

        if self.cascade:
            # What has been passed changes once more.
            return lambda: start(Store())
        kept = list(start(Store(_room(joints, calibration))))
        return lambda: kept

    def _views(self, calibration: CalibrationImages) -> int:
        if calibration.augmentation is None:
            return 0
        return self.views if self.views is not None else -(-SAMPLES // len(calibration)) - 1

    def _sensitivities(
        self,
        state: QuantizationState,
        layers: Sequence[Layer],
        calibration: CalibrationImages,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """What the solver is told of how the network feels errors of the layers' outputs, by the layers' names."""
        if not self.coupling:
            return {}
        some = replace(calibration, images=calibration.images[:: -(-len(calibration) // self.felt)])
        batches = track(some.batches(), "measuring sensitivities", total=some.number_of_batches)
        found = sensitivities(state.teacher, layers, batches, self.draws, generator)
        runtime.release_memory()
        return {name: self._damped(sensitivity) for name, sensitivity in found.items()}

    def _damped(self, sensitivity: Tensor) -> Tensor:
        diagonal = sensitivity.diagonal(dim1=-2, dim2=-1)
        # Outputs that nobody feels are still to be determined by something.
        return self.coupling * sensitivity + torch.diag_embed((1 - self.coupling) * diagonal + FLOOR)

    def reconstruction(self, state: QuantizationState, layer: Layer, course: Course) -> Reconstruction:
        """What has to be known of `layer`, as the student is now."""
        started = time.perf_counter()
        joints = course.joints
        with_bias = self._with_bias(state, layer)
        receiver = joints.receiver(layer.name) if self.asymmetric and not with_bias else None
        student, teacher = (module.get_submodule(layer.name) for module in (state.student, state.teacher))
        raw = gather_moments(layer, student, teacher, self._calls(layer, course))
        _remark(layer, raw)
        # Where something takes up an offset, the means of inputs and outputs do not matter.
        moments = raw.centred() if receiver else raw
        target, gram = self._target(state, layer, moments, with_bias)
        return Reconstruction(
            layer, target, gram, moments, raw, receiver, with_bias, self.per_channel, course.felt.get(layer.name),
            time.perf_counter() - started,
        )  # fmt: skip

    def _calls(self, layer: Layer, course: Course) -> Iterator[tuple[Tensor, Tensor]]:
        """What the student feeds the layer with, and what it should return, of the images that the moments take."""
        correction = course.joints.correction(layer.name)
        for student, teacher in course.walks():
            inputs, outputs = student.inputs(layer), teacher.outputs(layer)
            missing = correction(student, teacher) if self.asymmetric else 0.0
            for x, y in zip(inputs, outputs, strict=True):
                positions = y[0].numel() // layer.shape[0] * course.images
                every = max(1, int(positions // self.gram_samples))
                yield x[::every], (y + missing)[::every]
            student.rest()
            teacher.rest()

    def _target(
        self, state: QuantizationState, layer: Layer, moments: Moments, with_bias: bool
    ) -> tuple[Tensor, Tensor]:
        """The weights to approach, and the Gram matrix of what they are multiplied with."""
        target = layer.to_matrix(state.student.get_parameter(layer.weight_name).detach().double())
        gram, cross = moments.gram, moments.cross
        if with_bias:
            bias = state.student.get_parameter(layer.bias_name).detach().double().view(1, -1, 1)
            target = torch.cat([target, bias], 2)
            gram, cross = moments.gram_with_ones, moments.cross_with_ones(bias)
        if self.asymmetric:
            target = least_squares(gram, cross, target, self.damping)
        return target, gram

    def _with_bias(self, state: QuantizationState, layer: Layer) -> bool:
        return (
            self.quantize_bias and layer.kind == "linear" and state.student.get_submodule(layer.name).bias is not None
        )


def _room(joints: Joints, calibration: CalibrationImages) -> float:
    """Bytes for values between layers, when the largest of them will have been solved as well."""
    widest = max(entry.weight[0].numel() for entry in joints.modules[0].modules() if isinstance(entry, tuple(KINDS)))
    return runtime.room(calibration.max_memory, calibration.device) - MATRICES * 8 * widest**2


def last_match(table: Mapping[str, T], name: str, default: T) -> T:
    """The entry of the last glob in `table` that matches a layer's `name`."""
    return [default, *(entry for pattern, entry in table.items() if fnmatchcase(name, pattern))][-1]


def _title(layer: Layer) -> str:
    return f"{layer.name} {'x'.join(map(str, layer.shape))}"


def _remark(layer: Layer, moments: Moments) -> None:
    """Log what makes the Gram matrix singular; the solvers cope."""
    if moments.dead_inputs:
        log.info("%s: %d of %d inputs are always zero", layer.name, moments.dead_inputs, moments.mean.numel())
    if moments.positions < moments.gram.shape[-1]:
        log.info(
            "%s: %d positions for %d inputs leave its Gram matrix singular: more calibration images would help",
            layer.name,
            moments.positions,
            moments.gram.shape[-1],
        )
