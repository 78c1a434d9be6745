import pytest
import torch
from torch import nn

from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.errors import CheckpointError, UsageError
from ldnq.journal import FileJournal, digest
from ldnq.presets import fill_in
from ldnq.recipe import apply_recipe

CIRCUMSTANCES = {"weights": "abc", "configuration": {"recipe": {"kbits": 3, "skip": ("head",)}}}


class Stopped(Exception):
    """What the power cut is to a process."""


class Fragile(FileJournal):
    """Stops the run once it has noted so many things."""

    def __init__(self, path, circumstances, notes):
        super().__init__(path, circumstances)
        self.left = notes

    def note(self, state, generator):
        super().note(state, generator)
        self.left -= 1
        if self.left == 0:
            raise Stopped


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(x + self.body(x)).mean((2, 3)))


@pytest.fixture
def network():
    module = Network()
    module(torch.randn(64, 3, 8, 8))
    return module.eval()


@pytest.fixture
def images():
    return CalibrationImages(
        torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8), lambda batch: batch.float() / 255,
        Augmentation(8, True), 16, torch.device("cpu"),
    )  # fmt: skip


def _bits(state):
    codes = {name: (weight.codes.tolist(), weight.scale.tolist()) for name, weight in state.weights.items()}
    return codes, {name: tensor.tolist() for name, tensor in state.student.state_dict().items()}


RECIPES = {
    "fast": {"preset": "fast", "views": 1},
    "paper": {"preset": "paper", "cascade_epochs": 2},
    "distilled": {"preset": "balanced", "distillation_steps": 4, "skip": ("head",)},
    "integers": {"preset": "fast", "abits": 8},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("notes", [1, 3, 5])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(network, images, recipe, notes, tmp_path):
    recipe, path = fill_in(RecipeConfig(**recipe)), tmp_path / "journal.safetensors"
    expected = apply_recipe(network, images, recipe, seed=0)
    try:
        found = apply_recipe(network, images, recipe, seed=0, journal=Fragile(path, CIRCUMSTANCES, notes))
    except Stopped:
        torch.manual_seed(99)  # another process has drawn other numbers
        found = apply_recipe(network, images, recipe, seed=0, journal=FileJournal(path, CIRCUMSTANCES))
    assert _bits(found) == _bits(expected)
    assert [r.layer for r in found.results] == [r.layer for r in expected.results]
    assert found.skipped == expected.skipped


def test_a_run_stopped_twice_goes_on_twice(network, images, tmp_path):
    recipe, path = fill_in(RecipeConfig(preset="fast")), tmp_path / "journal.safetensors"
    for _ in range(2):
        with pytest.raises(Stopped):
            apply_recipe(network, images, recipe, seed=0, journal=Fragile(path, CIRCUMSTANCES, 1))
    found = apply_recipe(network, images, recipe, seed=0, journal=FileJournal(path, CIRCUMSTANCES))
    assert _bits(found) == _bits(apply_recipe(network, images, recipe, seed=0))


@pytest.fixture
def stopped(network, images, tmp_path):
    path = tmp_path / "journal.safetensors"
    with pytest.raises(Stopped):
        apply_recipe(network, images, fill_in(RecipeConfig(preset="fast")), 0, journal=Fragile(path, CIRCUMSTANCES, 2))
    return path


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (CIRCUMSTANCES | {"weights": "xyz"}, "weights 'abc', not 'xyz'"),
        (CIRCUMSTANCES | {"configuration": {"recipe": {"kbits": 5, "skip": ("head",)}}}, "recipe kbits 3, not 5"),
        (CIRCUMSTANCES | {"version": "2"}, "version None, not '2'"),
    ],
)
def test_a_run_under_other_circumstances_is_told_what_differs(network, images, stopped, now, said):
    with pytest.raises(UsageError, match=f"holds an unfinished run with .*{said}: use another --output$"):
        apply_recipe(network, images, fill_in(RecipeConfig(preset="fast")), 0, journal=FileJournal(stopped, now))


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 100], ids=["empty", "text", "zeros"])
def test_a_damaged_journal_is_named(network, images, stopped, damage):
    stopped.write_bytes(damage)
    with pytest.raises(CheckpointError, match="is damaged: remove it to start over"):
        apply_recipe(network, images, fill_in(RecipeConfig()), 0, journal=FileJournal(stopped, CIRCUMSTANCES))


def test_the_digest_sees_every_number_and_name(network):
    before = digest(network)
    assert digest(network) == before
    with torch.no_grad():
        network.norm.running_var[0] += 1e-6
    assert digest(network) != before
