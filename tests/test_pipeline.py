import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import ldnq
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.errors import DataError, NetworkError, UsageError
from ldnq.journal import FileJournal
from ldnq.nesting import merged
from ldnq.pipeline import apply_nested, apply_recipe
from ldnq.presets import fill_in


class Twice(nn.Module):
    """Depthwise, dilated, grouped and repeated convolutions, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.bn = nn.BatchNorm2d(6)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = self.depthwise(self.depthwise(x).relu())
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["with cascade", "without"])
def test_any_network_is_quantized_from_a_loader(training):
    network = Twice()
    before = copy.deepcopy(network.state_dict())
    loader = DataLoader(TensorDataset(torch.randn(40, 3, 8, 8), torch.zeros(40)), 16)
    model = ldnq.quantize(network, loader, kbits=5, preset="paper", scale="channel", training=training)
    assert list(model.weights) == ["stem.weight", "depthwise.weight", "head.weight"]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    for name, weight in model.weights.items():
        assert torch.equal(model.module.get_parameter(name), weight.dequantize())
    batch_norm_moved = not torch.equal(model.module.bn.running_mean, before["bn.running_mean"])
    assert batch_norm_moved == training


def test_a_saved_network_gives_the_same_logits_bit_for_bit(tmp_path):
    network = Twice()
    x = torch.randn(40, 3, 8, 8)
    model = ldnq.quantize(network, [x], kbits=3)
    ldnq.save(model, tmp_path / "model.h5")
    loaded = ldnq.load(tmp_path / "model.h5", Twice())
    assert torch.equal(loaded.module(x), model.module(x))


def test_equal_seeds_give_equal_networks():
    network, x = Twice(), torch.randn(40, 3, 8, 8)
    one, two = (ldnq.quantize(network, [x], kbits=5, batch_size=8, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.module.state_dict().values(), two.module.state_dict().values()))


def test_more_levels_come_closer_to_the_network():
    network, x = Twice().eval(), torch.randn(60, 3, 8, 8)
    errors = []
    for kbits in (3, 5, 7):
        model = ldnq.quantize(network, [x], kbits=kbits, scale="channel", training=False)
        errors.append(float((model.module(x) - network(x)).detach().square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_no_inputs_are_refused():
    with pytest.raises(DataError, match="at least one batch"):
        ldnq.quantize(Twice(), [], kbits=3)


def test_one_image_is_enough_to_end():
    model = ldnq.quantize(Twice(), [torch.randn(1, 3, 8, 8)], kbits=3)
    assert len(model.weights) == 3


def test_training_works_where_the_caller_has_switched_gradients_off():
    with torch.no_grad():
        model = ldnq.quantize(Twice(), [torch.randn(8, 3, 8, 8)], kbits=3)
    assert len(model.weights) == 3


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, module, inputs=1):
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, x):
        return self.module(*[x] * self.inputs)[0]


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(1).abs().round().long().clamp(max=9)


OTHERS = {
    "Conv1d": (nn.Conv1d(3, 2, 3), (3, 6)),
    "Conv3d": (nn.Conv3d(1, 2, 3), (1, 4, 4, 4)),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 2, 2), (3, 4, 4)),
    "Embedding": (nn.Sequential(Tokens(), nn.Embedding(10, 4)), (3,)),
    "LSTM": (First(nn.LSTM(5, 4, batch_first=True)), (3, 5)),
    "GRU": (First(nn.GRU(5, 4, batch_first=True)), (3, 5)),
    "MultiheadAttention": (First(nn.MultiheadAttention(4, 2, batch_first=True), inputs=3), (3, 4)),
}


@pytest.mark.parametrize("preset", ["paper", "fast"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_neither_convolution_of_images_nor_linear_stays_float_and_is_listed(kind, preset):
    other, shape = OTHERS[kind]
    network = nn.Sequential(other, nn.Flatten(), nn.ReLU(), nn.LazyLinear(3))
    x = torch.randn(8, *shape)
    network(x)
    model = ldnq.quantize(network, [x], kbits=3, preset=preset, training=False)
    assert "3.weight" in model.weights
    assert not any(name.startswith("0.") for name in model.weights)
    listed = model.provenance["left_float"]
    assert f"{kind} is not a Conv2d or Linear layer" in listed.values()
    kept = model.module[0].state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in other.state_dict().items())


def test_pruned_weights_are_refused_with_what_to_do():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    prune.random_unstructured(network[0], "weight", 0.5)
    with pytest.raises(NetworkError, match="remove pruning and weight normalization first"):
        ldnq.quantize(network, [torch.randn(8, 4)], kbits=3)


def test_a_network_that_overflows_is_refused_in_one_line():
    network = nn.Sequential(nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        network[0].weight[:] = 1e30
    with pytest.raises(NetworkError, match="infinity or more at layer 0") as error:
        ldnq.quantize(network, [torch.randn(8, 4, 2, 2).abs()], kbits=3)
    assert "\n" not in str(error.value)


class Residual(nn.Module):
    """A block that all stages find, between a layer with a batch norm and one with a bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.block = Plus()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.block(self.norm(self.stem(x)).relu()).mean((2, 3)))


class Plus(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        return (x + self.norm(self.conv(x))).relu()


NESTED = {
    "paper": {"preset": "paper", "cascade_epochs": 1},
    "fast": {"preset": "fast"},
    "distilled": {"preset": "balanced", "distillation_steps": 12, "skip": ("stem",)},
    "blocks": {"preset": "fast", "block_steps": 12},
    "biases, a scale a channel, levels given": {
        "preset": "fast", "quantize_bias": True, "scale": "channel", "kbits_for": {"stem": 7}
    },
}  # fmt: skip


@pytest.fixture
def images():
    inputs = torch.randn(24, 3, 8, 8)
    return CalibrationImages(inputs, lambda batch: batch, Augmentation(8, True), 16, torch.device("cpu"))


@pytest.mark.parametrize("options", NESTED.values(), ids=NESTED)
def test_nested_codes_merge_into_each_other_and_little_else_differs(options, images):
    network, recipe = Residual().eval(), fill_in(RecipeConfig(**options))
    states = apply_nested(network, images, recipe, (9, 3, 7), seed=1)
    assert list(states) == [3, 7, 9]
    widest = states[9]
    for kbits, state in states.items():
        assert state.weights.keys() == widest.weights.keys()
        for name, weight in state.weights.items():
            levels, most = weight.codebook.num_levels, widest.weights[name].codebook.num_levels
            assert levels == recipe.kbits_for.get(name.removesuffix(".weight"), kbits)
            assert torch.equal(merged(widest.weights[name].codes, most, levels), weight.codes)
            assert torch.equal(state.student.get_parameter(name), weight.dequantize())
        for name, parameter in state.student.named_parameters():
            if parameter.dim() > 1 and name not in state.weights:
                assert torch.equal(parameter, network.get_parameter(name))


def test_the_fewest_levels_are_found_as_by_themselves(images):
    network, recipe = Residual().eval(), fill_in(RecipeConfig(distillation_steps=4))
    nested = apply_nested(network, images, recipe, (3, 5), seed=1)[3].student.state_dict()
    alone = apply_recipe(network, images, recipe, seed=1).student.state_dict()
    assert all(torch.equal(nested[name], tensor) for name, tensor in alone.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "fast", "abits": 8}, "expected float activations of nested codebooks, got --abits 8"),
        ({"preset": "paper", "skip": ("head",)}, "the cascade update would train layers that stay float anew"),
        ({"preset": "paper", "keep_first_last": True}, "the cascade update would train layers that stay float anew"),
    ],
    ids=["activations", "float layers under a cascade", "ends under a cascade"],
)
def test_recipes_that_leave_more_to_each_width_are_refused(options, said, images):
    with pytest.raises(UsageError, match=f"^{said}"):
        apply_nested(Residual(), images, fill_in(RecipeConfig(**options)), (3, 5), seed=0)


class Stopping(FileJournal):
    """Stops a run with its second layer at five levels."""

    def note(self, state, generator):
        super().note(state, generator)
        if state.nests and len(state.results) == 2:
            raise KeyboardInterrupt


def test_a_nested_run_that_was_stopped_ends_as_if_it_had_not_been(images, tmp_path):
    network, recipe = Residual().eval(), fill_in(RecipeConfig(preset="fast"))

    expected = apply_nested(network, images, recipe, (3, 5), seed=1)[5].student.state_dict()
    with pytest.raises(KeyboardInterrupt):
        apply_nested(network, images, recipe, (3, 5), 1, journals=lambda kbits: Stopping(tmp_path / f"{kbits}", {}))
    states = apply_nested(
        network, images, recipe, (3, 5), 1, journals=lambda kbits: FileJournal(tmp_path / f"{kbits}", {})
    )
    found = states[5].student.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
