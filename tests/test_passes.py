"""How often a run goes through each module of student and teacher, with how many images, and what it keeps of them: a
guard of speed that measures no time."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ldnq import curvature
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.graph import find_layers
from ldnq.preparation import start
from ldnq.presets import fill_in, stages
from ldnq.recipe import HELD_OUT
from ldnq.stages.layerwise import Layerwise
from ldnq.store import Store
from ldnq.walk import Walk
from ldnq.wiring import Wiring

CHANNELS, SIDE = 4, 8


class Block(nn.Module):
    """A residual block, with a projection where `stride` is not 1."""

    def __init__(self, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS)
        projection = (nn.Conv2d(CHANNELS, CHANNELS, 1, stride, bias=False), nn.BatchNorm2d(CHANNELS))
        self.shortcut = nn.Sequential(*projection) if stride > 1 else None

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + (self.shortcut(x) if self.shortcut else x)).relu()


def network():
    """Two blocks, the second with a projection."""
    stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)
    return nn.Sequential(stem, Block(1), Block(2), *head).eval()


# In the order in which they run.
MODULES = (
    "0", "1.conv1", "1.bn1", "1.conv2", "1.bn2",
    "2.conv1", "2.bn1", "2.conv2", "2.bn2", "2.shortcut.0", "2.shortcut.1", "3", "4", "5",
)  # fmt: skip
LAYERS = ("0", "1.conv1", "1.conv2", "2.conv1", "2.conv2", "2.shortcut.0", "5")


@contextmanager
def counted(state):
    """While inside, how many passes go through each module of the student and the teacher in `state`, copies made of
    them included, and how many images: by network and name."""
    passes, images = Counter(), Counter()
    for network, module in (("student", state.student), ("teacher", state.teacher)):
        for name, part in module.named_modules():
            part.place = network, name

    def note(module, inputs):
        if hasattr(module, "place") and isinstance(inputs[0], torch.Tensor):
            passes[module.place] += 1
            images[module.place] += len(inputs[0])

    handle = register_module_forward_pre_hook(note)
    try:
        yield passes, images
    finally:
        handle.remove()


def run(images, batch_size, **options):
    """Passes and images of a run's stages."""
    state, generator = start(network()), torch.Generator().manual_seed(0)
    calibration = CalibrationImages(
        torch.randn(images, 3, SIDE, SIDE), lambda batch: batch, None, batch_size, torch.device("cpu")
    )
    recipe = fill_in(RecipeConfig(kbits=3, solver="nearest", **options))
    if recipe.distillation_steps:
        calibration = calibration.set_apart(HELD_OUT, generator)
    with counted(state) as found:
        for stage in stages(recipe):
            state = stage(state, calibration, generator)
    return found


def passes_for_sensitivities(images, batch_size):
    """How many parts the images, or as many as are enough, are taken in where gradients come back."""
    whole, rest = divmod(len(range(0, images, -(-images // Layerwise.felt))), batch_size)
    most = min(curvature.SAMPLES, curvature.ENTRIES // (3 * SIDE**2))
    return sum(-(-size // most) for size in [batch_size] * whole + [rest] * (rest > 0))


@pytest.mark.parametrize(("images", "batch_size"), [(24, 8), (20, 8), (70, 70), (300, 100)])
def test_a_fast_run_goes_through_every_module_once_a_batch(images, batch_size):
    passes, _ = run(images, batch_size, preset="fast")
    batches, felt = -(-images // batch_size), passes_for_sensitivities(images, batch_size)
    expected = Counter()
    for name in MODULES:
        # The example that layers are found by, and all up to the last layer, whose inputs are all that is asked for.
        expected["student", name] = 1 + batches * (MODULES.index(name) < MODULES.index("5"))
        expected["teacher", name] = felt + batches
    # What the other branch of a block lacks has to be known before the walk comes there: a look ahead.
    for name in MODULES[MODULES.index("2.conv2") : MODULES.index("3")]:
        expected["student", name] += batches
        expected["teacher", name] += batches * (name != "2.conv2")
    assert {place: passes[place] for place in expected} == expected


def test_images_go_through_the_first_layer_as_often_as_a_preset_says():
    images = 20
    first = ("student", "0"), ("teacher", "0")
    example = 2

    _, found = run(images, 8, preset="fast")
    assert [found[place] for place in first] == [example + images, images + images]

    # Layer by layer from the start, since what was passed has changed; then an epoch of the cascade update.
    _, found = run(images, 8, preset="paper", cascade_epochs=1)
    layers = len(LAYERS)
    # What the first layer is given needs no layer; of the last one the bias is left to train.
    assert found["student", "0"] == example + (layers - 1) * images + layers * images
    assert found["teacher", "0"] == layers * images + layers * images

    steps, checks = 4, 4
    _, found = run(images, 8, preset="balanced", distillation_steps=steps)
    held_out = round(HELD_OUT * images)
    learned = images - held_out
    views = 1 + 3  # each image held out as it is and in random views
    # Steps take all that is learned from where that is less than a batch, and the first layer is walked through.
    assert found["student", "0"] == example + learned + (1 + checks) * views * held_out + steps * learned
    assert found["teacher", "0"] == 2 * learned + views * held_out + steps * learned


@pytest.mark.parametrize("limit", [float("inf"), 0], ids=["in memory", "in files"])
def test_the_way_to_a_layer_is_gone_once(limit):
    state, batch = start(network()), torch.randn(2, 3, SIDE, SIDE)
    layers, _ = find_layers(state.student, batch)
    assert [layer.name for layer in layers] == list(LAYERS)
    with counted(state) as (passes, _):
        walk = Walk(Wiring(state.student), batch, Store(limit))
        for layer in layers:
            walk.inputs(layer)
            walk.rest()
    assert passes == {("student", name): 1 for name in MODULES[: MODULES.index("5")]}


def test_a_walk_keeps_what_lies_ahead_alone():
    images = 3
    state = start(network())
    batch = torch.randn(images, 3, SIDE, SIDE)
    layers, _ = find_layers(state.student, batch)
    walk = Walk(Wiring(state.student), batch)
    full, half = (4 * images * CHANNELS * side**2 for side in (SIDE, SIDE // 2))
    expected = {
        "0": 4 * batch.numel(),
        "1.conv1": full,
        "1.conv2": 2 * full,  # and what the shortcut adds
        "2.conv1": full,
        "2.conv2": half + full,
        "2.shortcut.0": full + half,  # the other branch
        "5": 4 * images * CHANNELS,
    }
    for layer in layers:
        walk.inputs(layer)
        assert kept(walk) == expected[layer.name]


def kept(walk):
    """The bytes that a walk keeps."""
    return sum(value.untyped_storage().nbytes() for value in walk.env.values())
