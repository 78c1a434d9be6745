import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ldnq
from ldnq import errors, ranks
from ldnq.cli import main
from ldnq.errors import keeping, kept
from ldnq.heartbeat import LOST

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import two_processes  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes, started as torchrun starts them, have left their work and the run that lost one of them."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "pictures").mkdir()
    images = two_processes.pictures()
    for number in range(len(images)):
        images.picture(number).save(folder / "pictures" / f"{number}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(ldnq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    processes = []
    for rank in ("0", "1"):
        command = [sys.executable, str(HERE / "two_processes.py"), str(folder)]
        with (folder / f"said-{rank}").open("w") as said:
            own = environment | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, cwd=folder, stdout=said, stderr=said))
    try:
        codes = [process.wait(120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [LOST, -signal.SIGKILL], (folder / "said-0").read_text() + (folder / "said-1").read_text()
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """The work of one process, and of each of two."""
    together = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    return two_processes.work(folder), *together


def _of(found, name):
    return {key: value for key, value in found.items() if key.split()[0] == name}


def test_images_are_read_and_measured_in_parts_that_add_up(results):
    one, first, second = results
    assert torch.equal(first["images"], one["images"])
    for name in ("top1", "top5", "samples", "right"):
        assert first[name] == second[name] == one[name]
    assert torch.equal(first["classes"], one["classes"])
    torch.testing.assert_close(first["confidences"], one["confidences"])
    assert first["loss"] == pytest.approx(one["loss"])


def test_gram_matrices_differ_in_the_order_of_sums_alone(results):
    one, first, second = results
    assert torch.equal(first["gram"], second["gram"])
    difference = (first["gram"] - one["gram"]).norm() / one["gram"].norm()
    assert difference < 1e-12
    assert [found["own"] for found in results] == [6, 3, 3]
    assert first["positions"] == one["positions"]


@pytest.mark.parametrize("recipe", ["fast", "channel", "auto", "cascade"])
def test_codes_are_those_of_one_process(results, recipe):
    one, first, second = (_of(found, recipe) for found in results)
    assert len(one) > 8
    for name, value in one.items():
        assert torch.equal(first[name], second[name])
        if name.endswith("codes"):
            assert torch.equal(first[name], value), name
        else:
            torch.testing.assert_close(first[name], value, rtol=1e-6 if name.endswith("scale") else 1e-4, atol=1e-6)


def test_distillation_leaves_all_with_the_same_network(results):
    one, first, second = (_of(found, "distilled") for found in results)
    for name in one:
        assert torch.equal(first[name], second[name])
    codes = [torch.cat([value.flatten() for name, value in it.items() if "codes" in name]) for it in (one, first)]
    assert (codes[0] == codes[1]).float().mean() > 0.95


def test_training_with_synchronized_batch_norms_is_that_of_one_process(results):
    one, first, second = (_of(found, "synchronized") for found in results)
    assert first["synchronized losses"] == pytest.approx(one["synchronized losses"], rel=1e-4)
    assert first["synchronized type"] is torch.nn.BatchNorm2d
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


def test_training_leaves_all_with_the_same_weights_and_statistics(results):
    one, first, second = (_of(found, "alone") for found in results)
    assert first["alone losses"] == pytest.approx(one["alone losses"], rel=0.2)
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(first[name], second[name])
    assert not torch.equal(results[1]["alone 1.running_mean"], results[1]["synchronized 1.running_mean"])


def test_what_the_first_decides_holds_for_all(results):
    assert [found["agreed"] for found in results[1:]] == [(0, "found by 0")] * 2
    assert [found["size"] for found in results[1:]] == [2, 2]


def test_alone_there_is_nobody_to_ask():
    values = torch.arange(3.0)
    ranks.sum_(values)
    assert values.tolist() == [0, 1, 2]
    assert (ranks.rank(), ranks.size(), ranks.first()) == (0, 1, True)
    assert ranks.agreed(lambda: "mine") == "mine"
    assert list(ranks.mine("abc")) == ["a", "b", "c"]
    assert (ranks.share(5), ranks.share_of_batch(5)) == (slice(0, 5), (slice(0, 5), 1.0))


def test_what_is_kept_is_known_also_after_an_error(monkeypatch):
    monkeypatch.setattr(errors, "_kept", [])
    with keeping(lambda: "one layer"):
        assert kept() == "one layer"
    assert kept() == "nothing was saved"
    with pytest.raises(ValueError, match="wrong"), keeping(lambda: "two layers"):
        raise ValueError("wrong")
    assert kept() == "two layers"


def test_a_process_that_dies_is_named_and_the_run_goes_on_without_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run, whole = folder / "run", folder / "whole"
    said, silent = ((folder / name).read_text() for name in ("said-0", "said-1"))
    line = said.splitlines()[-1]
    assert line.startswith("error: rank 1 is gone, silent for ")
    assert line.endswith(f": all finished layers are kept, 'ldnq quantize --resume {run}' goes on")
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert "quantizing layers 2 of 4" in said
    assert "quantizing" not in silent
    for command in (["quantize", "--resume", str(run)], [*two_processes.command(folder), "--output", str(whole)]):
        with pytest.raises(SystemExit, match="0"):
            main(command)
    resumed, undisturbed = (ldnq.load(path / "model.h5", two_processes.network()).weights for path in (run, whole))
    for name, weight in undisturbed.items():
        assert torch.equal(resumed[name].codes, weight.codes)
        torch.testing.assert_close(resumed[name].scale, weight.scale, rtol=1e-6, atol=0)
