"""Options become one configuration, the configuration a file, and the file the same options again."""

import json
from dataclasses import FrozenInstanceError

import pytest

from ldnq.config import (
    CalibrationConfig,
    DataConfig,
    NetworkConfig,
    RecipeConfig,
    RunConfig,
    RuntimeConfig,
)
from ldnq.errors import UsageError

OPTIONS = {
    "model": "resnet20",
    "model_args": {"width": 32, "option": "B"},
    "num_classes": 12,
    "checkpoint": "weights.th",
    "pretrained_dir": "elsewhere",
    "dataset": "cifar10",
    "data_root": "/data/cifar",
    "download": True,
    "image_size": 40,
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "ratio": 0.02,
    "samples": 50,
    "seed": 3,
    "stratified": True,
    "resample": True,
    "calibration": "set.h5",
    "calibration_data": False,
    "synthesize": 30,
    "preset": "fast",
    "method": "ldnq",
    "kbits": "auto",
    "kbits_for": {"layer1.*": 5, "linear": 9},
    "target_bits": 2.5,
    "solver": "nearest",
    "scale": "channel",
    "quantize_bias": True,
    "skip": ("conv1", "linear"),
    "views": 2,
    "gram_samples": 1000,
    "cascade_epochs": 4,
    "cascade_lr": 0.01,
    "block_steps": 30,
    "distillation_steps": 20,
    "abits": 6,
    "ranges": "percentile",
    "keep_first_last": True,
    "training": False,
    "device": "cuda:1",
    "precision": "bf16",
    "batch_size": 16,
    "workers": 2,
    "threads": 1,
    "max_memory": 4.0,
    "sync_batchnorm": True,
}


def test_every_option_finds_its_part():
    config = RunConfig.from_options(OPTIONS)
    found = {name: value for table in config.to_dict().values() for name, value in table.items()}
    assert found == OPTIONS
    assert config.network.model_args == {"width": 32, "option": "B"}
    assert config.data.image_size == 40
    assert config.calibration.seed == 3
    assert config.recipe.kbits == "auto"
    assert config.recipe.kbits_for == {"layer1.*": 5, "linear": 9}
    assert config.runtime.device == "cuda:1"


def test_how_a_run_is_spread_is_no_part_of_it():
    spread = {"devices": 2, "num_nodes": 3, "strategy": "ddp", "timeout": 5}
    config = RunConfig.from_options(OPTIONS | spread)
    assert (config.runtime.devices, config.runtime.num_nodes) == (2, 3)
    assert config.to_dict() == RunConfig.from_options(OPTIONS).to_dict()


@pytest.mark.parametrize("options", [{"devices": 0}, {"num_nodes": 0}, {"timeout": 0}, {"strategy": "dp"}])
def test_processes_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError, match=r"^expected "):
        RuntimeConfig(**options)


def test_a_part_of_the_options_leaves_the_rest_at_their_defaults():
    config = RunConfig.from_options({"model": "resnet20", "kbits": 5})
    assert config == RunConfig(
        NetworkConfig("resnet20"), DataConfig(), CalibrationConfig(), RecipeConfig(kbits=5), RuntimeConfig()
    )


def test_options_of_other_commands_are_passed_over():
    assert RunConfig.from_options({"model": "resnet20", "as_json": True}) == RunConfig.from_options(
        {"model": "resnet20"}
    )


@pytest.mark.parametrize("options", [OPTIONS, {"model": "resnet20"}], ids=["all", "defaults"])
def test_a_configuration_survives_its_file(options):
    config = RunConfig.from_options(options)
    tables = json.loads(json.dumps(config.to_dict()))
    flat = {name: value for table in tables.values() for name, value in table.items()}
    assert RunConfig.from_options(flat) == config


def test_a_configuration_never_changes():
    config = RunConfig.from_options(OPTIONS)
    with pytest.raises(FrozenInstanceError):
        config.recipe.kbits = 3


def test_sequences_become_tuples():
    assert DataConfig(mean=[0.1, 0.2, 0.3]).mean == (0.1, 0.2, 0.3)
    assert RecipeConfig(skip=["conv1"]).skip == ("conv1",)


@pytest.mark.parametrize("kbits", [3, 5, 7, 9, 11])
def test_the_known_numbers_of_levels_are_taken(kbits):
    assert RecipeConfig(kbits=kbits).kbits == kbits


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("ratio", 0.0, "expected a ratio above 0 and at most 1, got 0.0"),
        ("ratio", 1.01, "expected a ratio above 0 and at most 1, got 1.01"),
        ("ratio", -0.5, "expected a ratio above 0"),
        ("ratio", float("nan"), "expected a ratio above 0"),
        ("samples", 0, "expected at least 1 calibration image, got --samples 0"),
        ("samples", -3, "expected at least 1 calibration image"),
        ("seed", -1, "seed"),
        ("kbits", 4, "expected kbits of 3, 5, 7, 9, 11 or auto, got 4"),
        ("kbits", 13, "expected kbits of 3, 5, 7, 9, 11 or auto, got 13"),
        ("kbits", "auto", "expected --kbits auto with --target-bits BITS, such as 2.0, got no target bits"),
        ("target_bits", 2.0, "expected --kbits auto with --target-bits BITS, such as 2.0, got kbits 3"),
        ("kbits_for", {"conv1": 4}, "expected kbits of 3, 5, 7, 9, 11 for conv1, got 4"),
        ("scale", "row", "expected a scale of layer or channel, got 'row'"),
        ("abits", 3, "expected 4 to 8 bits of activations, got 3"),
        ("abits", 9, "expected 4 to 8 bits of activations, got 9"),
        ("ranges", "minmax", "expected ranges by least-squares or percentile, got 'minmax'"),
        ("precision", "64", "expected a precision of auto, 32, bf16, 16, got '64'"),
        ("batch_size", 0, "expected a batch size of at least 1, got 0"),
        ("workers", -1, "expected no negative workers or threads, got -1 and 0"),
        ("threads", -2, "expected no negative workers or threads, got 0 and -2"),
    ],
    ids=[
        "ratio-zero", "ratio-above-one", "ratio-negative", "ratio-nan", "samples-zero", "samples-negative",
        "seed-negative", "kbits-even", "kbits-too-many", "auto-alone", "target-alone",
        "kbits-for-even", "scale", "abits-few", "abits-many",
        "ranges", "precision", "batch-size", "workers", "threads",
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused_in_one_line(option, value, expected):
    with pytest.raises(UsageError) as error:
        RunConfig.from_options({"model": "resnet20", option: value})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [1.58, 0.0, -1.0, float("inf"), float("nan")])
def test_target_bits_are_those_of_three_levels_or_more(bits):
    with pytest.raises(UsageError, match=r"expected target bits of at least 1\.585, which 3 levels take, got "):
        RecipeConfig(kbits="auto", target_bits=bits)


def test_of_images_over_128_pixels_there_are_fewer_at_once():
    options = RuntimeConfig(batch_size=128)
    assert [options.images_at_once(size) for size in (32, 128, 256, 4096)] == [128, 128, 32, 1]
    assert RuntimeConfig(batch_size=1).images_at_once(224) == 1
