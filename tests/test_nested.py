"""Nested codebooks: states whose codes merge into each other, and the one network that runs at all of them."""

import pytest
import torch
from torch import nn

import ldnq
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.errors import NetworkError, UsageError
from ldnq.journal import FileJournal
from ldnq.nesting import merged
from ldnq.presets import fill_in
from ldnq.recipe import apply_nested, apply_recipe, joined


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


@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_one_checkpoint_holds_every_number_of_levels(scale, tmp_path):
    network, x = Residual().eval(), torch.randn(24, 3, 8, 8)
    options = {"preset": "balanced", "distillation_steps": 4, "scale": scale}
    model = ldnq.quantize(network, [x], kbits=(3, 7, 11), method="any-precision", **options)
    sizes = ldnq.save(model, tmp_path / "model.h5")
    loaded = ldnq.load(tmp_path / "model.h5", Residual())
    for kbits in (11, 3, 7, 3):
        model.set_kbits(kbits)
        loaded.set_kbits(kbits)
        alone = loaded.at(kbits=kbits)
        assert torch.equal(loaded.module(x), model.module(x))
        assert torch.equal(alone.module(x), model.module(x))
        for name, weight in alone.weights.items():
            assert weight.codebook.num_levels == kbits
            assert torch.equal(weight.dequantize(), alone.module.get_parameter(name))
    fewest = ldnq.quantize(network, [x], kbits=3, **options)
    assert torch.equal(loaded.at(kbits=3).module(x), fewest.module(x))
    assert sizes["codes"] == ldnq.save(loaded.at(kbits=11), tmp_path / "alone.h5")["codes"]
    with pytest.raises(UsageError, match="expected kbits of 3, 7, 11, which the network has, got bits 3"):
        loaded.set_bits(3)


def test_states_that_differ_in_more_are_not_one_network(images):
    states = apply_nested(Residual().eval(), images, fill_in(RecipeConfig(preset="fast", skip=("stem",))), (3, 5), 1)
    with torch.no_grad():
        states[3].student.stem.weight.add_(1)
    with pytest.raises(NetworkError, match=r"stem.weight differ between \(3, 5\) levels"):
        joined(states)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kbits": 3}, "expected several kbits of 3,5,7,9,11 with any-precision, got 3"),
        ({"kbits": (3, 4)}, "expected several kbits of 3,5,7,9,11 with any-precision, got 3,4"),
        ({"kbits": (3, 5), "kbits_for": {"stem": 7}}, "--kbits-for is not for --method any-precision"),
        ({"kbits": (3, 5), "quantize_bias": True}, "--quantize-bias is not for --method any-precision"),
        ({"kbits": (3, 5), "abits": 8}, "--abits is not for --method any-precision"),
    ],
    ids=str,
)
def test_recipes_of_several_levels_that_cannot_be_are_refused(options, said):
    with pytest.raises(UsageError, match=f"^{said}"):
        RecipeConfig(method="any-precision", **options)


def test_several_levels_without_the_method_are_refused():
    with pytest.raises(
        UsageError,
        match=r"expected kbits of 3, 5, 7, 9, 11 or auto, got \(3, 5\): several are for --method any-precision",
    ):
        RecipeConfig(kbits=(3, 5))


class Normalized(nn.Module):
    """Factors that no batch norm has."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def test_what_gradient_steps_would_train_anew_for_each_is_refused_before_the_first_layer(images):
    with pytest.raises(UsageError, match="gradient steps would train norm anew for each codebook: --no-training"):
        apply_nested(Normalized(), images, fill_in(RecipeConfig()), (3, 5), seed=0)
    assert len(apply_nested(Normalized(), images, fill_in(RecipeConfig(preset="fast")), (3, 5), seed=0)) == 2
