"""The trainer on a tiny network and random images."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from ldnq import checkpoints, curves
from ldnq.augmentation import Augmentation
from ldnq.errors import CheckpointError, UsageError
from ldnq.evaluation import Accuracy
from ldnq.preprocessing import Preprocessing
from ldnq.training import Trainer, TrainingRecipe

SIZE = 8
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SHORT = dict(epochs=3, batch_size=8, lr=0.05, schedule="constant")


def _network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def _images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 3, SIZE, SIZE), generator=generator)
    return (noise + 50 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def _trainer(folder, options=None, module=None, **parts):
    parts = {"fabric": Fabric(accelerator="cpu", devices=1)} | parts
    recipe = TrainingRecipe(**SHORT | (options or {}))
    images = parts.pop("images", None) or _images(40)
    return Trainer(
        module or _network(), *images, PREPROCESSING, Augmentation(SIZE), recipe, state=Path(folder) / "state.pt",
        subject="noise", **parts,
    )  # fmt: skip


def _values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


class Stopped(Exception):
    pass


def _stop_after(trainer, epochs):
    """Let `trainer` be stopped when its state of so many epochs is saved."""
    save = trainer._save

    def save_and_stop():
        save()
        if trainer.epoch == epochs:
            raise Stopped

    trainer._save = save_and_stop


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9, "schedule": "plateau", "patience": 0, "gamma": 0.5, "warmup": 1, "keep": "best", "lr": 0.3},
        {"ema": 0.9, "optimizer": "adam", "clip": 0.1, "schedule": "cosine", "warmup": 1.5, "test_every": 1},
        {"schedule": "step", "milestones": (0.3, 2), "label_smoothing": 0.1, "deterministic": True},
        {"schedule": "one-cycle", "keep": "best"},
    ],
    ids=["average and plateau", "adam and cosine", "step", "one cycle"],
)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, options):
    parts = dict(
        held_out=_images(15, seed=1), teacher=_network(), test=lambda module: Accuracy(float(_sum(module)), 0, 1, 3)
    )
    ends = []
    for stops in ((), (1,), (2,), (1, 2)):
        folder = tmp_path / "-".join(map(str, ("run", *stops)))
        for stop in stops:
            trainer = _trainer(folder, options, **parts)
            trainer.resume()
            _stop_after(trainer, stop)
            with pytest.raises(Stopped):
                trainer.run()
        trainer = _trainer(folder, options, **parts)
        assert trainer.resume() == bool(stops)
        trainer.run()
        files = [(folder / name).read_text() for name in ("training.csv", "curves.svg")]
        best = checkpoints.read(folder / "best.pt")[0]
        ends.append((_values(trainer.module), trainer.optimizer.param_groups[0]["lr"], files, best))
    for end in ends[1:]:
        assert _equal(end[0], ends[0][0])
        assert end[1:3] == ends[0][1:3]
        assert _equal(end[3], ends[0][3])


def _sum(module):
    return sum(parameter.detach().abs().sum() for parameter in module.parameters())


def test_a_finished_training_has_nothing_left_to_do(tmp_path):
    first = _trainer(tmp_path, {"ema": 0.9})
    first.run()
    table = (tmp_path / "training.csv").read_text()
    again = _trainer(tmp_path, {"ema": 0.9})
    assert again.resume()
    again.run()
    assert _equal(_values(again.module), _values(first.module))
    assert (tmp_path / "training.csv").read_text() == table


def test_another_recipe_does_not_go_on(tmp_path):
    _trainer(tmp_path).run()
    with pytest.raises(CheckpointError, match=r"state.pt is of ema 0.0, not of 0.9: use another --output"):
        _trainer(tmp_path, {"ema": 0.9}).resume()
    (tmp_path / "state.pt").unlink()
    _trainer(tmp_path, {"schedule": "step", "milestones": [0.5]}).run()
    with pytest.raises(CheckpointError, match=r"state.pt is of milestones \(0.5,\), not of \(\)"):
        _trainer(tmp_path, {"schedule": "step"}).resume()
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"state.pt is damaged: remove it"):
        _trainer(tmp_path).resume()


def test_the_average_is_the_one_made_by_hand(tmp_path):
    steps = []
    trainer = _trainer(tmp_path, {"ema": 0.8})
    trainer.after_step = lambda: steps.append(_values(trainer.module))
    trainer.run()
    assert len(steps) == 15
    expected = steps[0]
    for values in steps[1:]:
        # Counters stay whole numbers.
        expected = {name: (0.8 * mean + 0.2 * values[name]).to(mean.dtype) for name, mean in expected.items()}
    for name, tensor in trainer.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert not torch.equal(trainer.module[0].weight, steps[-1]["0.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_is_that_of_torch(tmp_path, optimizer):
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 3))
    ours, images = copy.deepcopy(module), _images(8)
    options = {"epochs": 1, "optimizer": optimizer, "momentum": 0.7, "weight_decay": 0.01}
    trainer = _trainer(tmp_path, options, ours, images=images)
    trainer.augmentation = lambda batch, generator: batch
    trainer.run()
    if optimizer == "sgd":
        reference = torch.optim.SGD(module.parameters(), 0.05, 0.7, weight_decay=0.01, nesterov=True)
    else:
        reference = torch.optim.Adam(module.parameters(), 0.05, (0.7, 0.999), weight_decay=0.01)
    F.cross_entropy(module(PREPROCESSING.normalize(images[0])), images[1]).backward()
    reference.step()
    torch.testing.assert_close(ours[1].weight, module[1].weight)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_gradients_are_cut_to_their_norm(tmp_path, clip):
    trainer, norms = _trainer(tmp_path, {"clip": clip, "epochs": 1}), []
    trainer.after_step = lambda: norms.append(
        math.hypot(*(float(parameter.grad.norm()) for parameter in trainer.module.parameters()))
    )
    trainer.run()
    assert (max(norms) <= 0.01 * (1 + 1e-4)) == (clip > 0)


def test_groups_and_what_is_called_around_a_step(tmp_path):
    module, calls = _network(), []
    frozen = _values(module)["4.weight"]
    groups = [{"params": list(module[:2].parameters()), "lr": 0.2, "weight_decay": 0.0}]
    trainer = _trainer(
        tmp_path, {"epochs": 1}, module, parameters=groups,
        before_step=lambda: calls.append((module[0].weight.grad is not None, float(module[0].weight.data.sum()))),
        after_step=lambda: calls.append((True, float(module[0].weight.data.sum()))),
    )  # fmt: skip
    trainer.run()
    assert torch.equal(module[4].weight, frozen)
    assert all(graded for graded, _ in calls)
    assert all(before[1] != after[1] for before, after in zip(calls[::2], calls[1::2]))
    assert all(after == before for (_, after), (_, before) in zip(calls[1::2], calls[2::2]))


def test_a_teacher_is_learned_from_and_left_alone(tmp_path):
    teacher = _network()
    before = _values(teacher)
    images, labels = _images(40)
    # Labels that say nothing: all there is to learn is the teacher's.
    trainer = _trainer(
        tmp_path, {"distillation": 1.0, "temperature": 2.0, "epochs": 8, "lr": 0.005, "optimizer": "adam"},
        teacher=teacher, images=(images, torch.zeros_like(labels)),
    )  # fmt: skip
    torch.nn.init.zeros_(trainer.module[4].weight)
    trainer.run()
    assert trainer.rows[-1]["loss"] < trainer.rows[0]["loss"] / 2
    assert _equal(_values(teacher), before)
    assert not any(module.training for module in teacher.modules())
    with pytest.raises(UsageError, match="expected --teacher FILE with --temperature, got no teacher"):
        _trainer(tmp_path, {"temperature": 2.0})


def test_the_best_epoch_is_that_of_the_images_held_out(tmp_path):
    options = {"epochs": 6, "lr": 0.3, "keep": "best", "batch_size": 20}
    held_out, kept = _images(15, seed=1), {}
    trainer = _trainer(tmp_path, options, held_out=held_out)
    save = trainer._save

    def remember():
        save()
        kept[trainer.epoch] = _values(trainer.module)

    trainer._save = remember
    trainer.run()
    losses = {}
    for epoch, values in kept.items():
        module = _network().eval()
        module.load_state_dict(values)
        with torch.no_grad():
            logits = module(PREPROCESSING.normalize(held_out[0]))
        losses[epoch] = float(F.cross_entropy(logits, held_out[1]))
        row = trainer.rows[epoch - 1]
        assert row["held_out_loss"] == pytest.approx(losses[epoch], rel=1e-5)
        assert row["held_out_top1"] == pytest.approx(100 * float((logits.argmax(1) == held_out[1]).float().mean()))
    best = min(losses, key=losses.get)
    assert best < 6, "choose a rate by which the last epoch is not the best"
    assert _equal(_values(trainer.module), kept[best])
    assert _equal(checkpoints.read(tmp_path / "best.pt")[0], kept[best])


def test_the_best_of_an_average_is_an_average(tmp_path):
    trainer, averages = _trainer(tmp_path, {"ema": 0.9, "keep": "best"}), {}
    save = trainer._save

    def remember():
        save()
        averages[trainer.epoch] = _values(trainer.average.module)

    trainer._save = remember
    trainer.run()
    best = min(trainer.rows, key=lambda row: row["loss"])["epoch"]
    assert _equal(_values(trainer.module), averages[best])


def test_best_weights_that_are_gone_are_said(tmp_path):
    _trainer(tmp_path, {"keep": "best"}).run()
    (tmp_path / "best.pt").unlink()
    again = _trainer(tmp_path, {"keep": "best"})
    again.resume()
    with pytest.raises(CheckpointError, match=r"best.pt is gone, which the training has written: use another --output"):
        again.run()


@pytest.mark.parametrize("deterministic", [True, False])
def test_algorithms_are_deterministic_while_it_lasts(tmp_path, deterministic):
    trainer, found = _trainer(tmp_path, {"deterministic": deterministic}), set()
    trainer.before_step = lambda: found.add(torch.are_deterministic_algorithms_enabled())
    trainer.run()
    assert found == {deterministic}
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_images_held_out_the_last_epoch_alone_is_written(tmp_path):
    _trainer(tmp_path).run()
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "training.csv", "curves.svg"}


def test_the_table_has_a_row_an_epoch(tmp_path):
    tested = []

    def test(module):
        tested.append(module)
        return Accuracy(50.0 + len(tested), 100.0, 10, 3)

    trainer = _trainer(tmp_path, {"epochs": 5, "test_every": 2, "ema": 0.5, "schedule": "step"}, test=test)
    trainer.run()
    rows = curves.read(tmp_path / "training.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row.get("test_top1") for row in rows] == [None, 51, None, 52, 53]
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.05, 0.005, 0.0005, 0.0005])
    assert all(module is trainer.average.module for module in tested)
    assert "held_out_loss" not in rows[0]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["top1"] > 40


def test_sixteen_bits_scale_their_losses_and_go_on_with_the_scale(tmp_path):
    def fabric():
        return Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))

    whole = _trainer(tmp_path / "whole", {"clip": 1.0}, fabric=fabric())
    whole.run()
    parts = _trainer(tmp_path / "parts", {"clip": 1.0}, fabric=fabric())
    _stop_after(parts, 1)
    with pytest.raises(Stopped):
        parts.run()
    resumed = _trainer(tmp_path / "parts", {"clip": 1.0}, fabric=fabric())
    # The scale that it starts from would overflow.
    resumed.fabric.strategy.precision.scaler.load_state_dict(
        resumed.fabric.strategy.precision.scaler.state_dict() | {"scale": 2.0**40}
    )
    resumed.resume()
    resumed.run()
    assert _equal(_values(resumed.module), _values(whole.module))
    precisions = [trainer.fabric.strategy.precision.state_dict() for trainer in (whole, resumed)]
    assert precisions[0] == precisions[1]
    assert whole.rows[-1]["loss"] < whole.rows[0]["loss"]


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(UsageError, match="expected at least 64 images to train on, got 40"):
        _trainer(tmp_path, {"batch_size": 64})
