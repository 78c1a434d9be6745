"""Everything that a run depends on, as plain values: parsed once, written first, never changed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ldnq.errors import UsageError

METHODS = ("ldnq", "any-precision")
KBITS = (3, 5, 7, 9, 11)
# Of `kbits`: levels are chosen layer by layer.
AUTO = "auto"
SCALES = ("layer", "channel")
RANGES = ("least-squares", "percentile")
# Bits of what is not rounded.
FLOAT = 32
PRECISIONS = ("auto", "32", "bf16")
# Methods of training with quantized layers: their options, and what those are if nobody says otherwise.
TRAINED: dict[str, dict[str, Any]] = {
    "dorefa": {"wbits": 4, "abits": 4, "gbits": FLOAT},
    "xnor": {"input_scale": False},
    "lsq": {"wbits": 4, "abits": 4},
    "pot": {"kbits": 3, "scale": "layer", "abits": FLOAT},
    "any-precision": {"bits": (1, 2, 4, 8, FLOAT), "supervision": "recursive", "calibrate_bits": ()},
}
BITS = (1, 2, 3, 4, 8, 16, FLOAT)
# Those that one network can run at, and what its narrower ones learn from.
WIDTHS = (*range(1, 9), FLOAT)
SUPERVISIONS = ("hard", "soft", "recursive")
UPDATES = ("float", "quantized")
TRAINING_PRECISIONS = (*PRECISIONS, "16")
STRATEGIES = ("auto", "ddp")
# Fields that say how a run is spread: one that goes on may be spread otherwise.
PROCESSES = ("devices", "num_nodes", "strategy", "timeout")
# Where several runs are compared, if nobody says otherwise.
COMPARISON = Path("comparison.html")


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and where its weights come from. `model` is a known name or `package.module:factory`."""

    model: str
    model_args: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    checkpoint: str | None = None
    pretrained_dir: str = "pretrained"

    @property
    def file_name(self) -> str:
        """The network's name as a part of the names of files."""
        return self.model.replace(":", ".").replace("/", "-")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are prepared; None leaves the choice to the dataset and the weights."""

    dataset: str | None = None
    data_root: str | None = None
    download: bool = False
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))


@dataclass(frozen=True)
class CalibrationConfig:
    """How the calibration set is drawn: `samples` images, else `ratio` of the training images, or no real image without
    `calibration_data`; `synthesize` images are made up beside them."""

    ratio: float = 0.01
    samples: int | None = None
    seed: int = 0
    stratified: bool = False
    resample: bool = False
    calibration: str | None = None
    calibration_data: bool = True
    synthesize: int = 0

    def __post_init__(self) -> None:
        if self.synthesize < 0:
            raise UsageError(f"expected no negative number of synthesized images, got {self.synthesize}")
        if not (self.calibration_data or self.synthesize):
            raise UsageError("expected images to calibrate on, got --no-calibration-data: give --synthesize N with it")
        if not 0 < self.ratio <= 1:
            raise UsageError(f"expected a ratio above 0 and at most 1, got {self.ratio}")
        if self.seed < 0:
            raise UsageError(f"expected a seed of at least 0, got {self.seed}")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"expected at least 1 calibration image, got --samples {self.samples}")


@dataclass(frozen=True)
class RecipeConfig:
    """What is done to the weights, and to activations where there are `abits`. Options that are None are filled in by
    the preset.

    `kbits` is the number of levels of every layer, or "auto" for those that suit each best among all whose weights have
    `target_bits` on average; `kbits_for` are those of layers whose names match a glob, the last one of several. With
    method "any-precision" `kbits` are several numbers, ascending, that one network runs at. Of a layer with many more
    positions than `gram_samples` the moments take some of the images alone; 0 is no limit.
    """

    preset: str = "balanced"
    method: str = "ldnq"
    kbits: int | str | tuple[int, ...] = 3
    kbits_for: dict[str, int] = field(default_factory=dict)
    target_bits: float | None = None
    solver: str | None = None
    scale: str | None = None
    quantize_bias: bool = False
    skip: tuple[str, ...] = ()
    keep_first_last: bool = False
    training: bool = True
    views: int | None = None
    gram_samples: int = 400_000
    cascade_epochs: int | None = None
    cascade_lr: float | None = None
    block_steps: int | None = None
    distillation_steps: int | None = None
    abits: int | None = None
    ranges: str = "least-squares"

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(self.skip))
        if self.method not in METHODS:
            raise UsageError(f"expected a method of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("views", "gram_samples", "cascade_epochs", "block_steps", "distillation_steps"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UsageError(f"expected no negative {name.replace('_', ' ')}, got {value}")
        if self.abits is not None and not 4 <= self.abits <= 8:
            raise UsageError(f"expected 4 to 8 bits of activations, got {self.abits}")
        if self.ranges not in RANGES:
            raise UsageError(f"expected ranges by {' or '.join(RANGES)}, got {self.ranges!r}")
        if self.cascade_lr is not None and not self.cascade_lr > 0:
            raise UsageError(f"expected a positive learning rate of the cascade, got {self.cascade_lr}")
        self._check_levels()
        if self.scale not in (None, *SCALES):
            raise UsageError(f"expected a scale of {' or '.join(SCALES)}, got {self.scale!r}")

    def _check_nested(self) -> None:
        several = tuple(self.kbits) if isinstance(self.kbits, (tuple, list)) else (self.kbits,)
        if len(several) < 2 or not set(KBITS).issuperset(several):
            got = ",".join(map(str, several))
            raise UsageError(f"expected several kbits of {','.join(map(str, KBITS))} with any-precision, got {got}")
        object.__setattr__(self, "kbits", tuple(sorted(set(several))))
        for name in ("kbits_for", "quantize_bias", "abits"):
            if getattr(self, name):
                raise UsageError(f"--{name.replace('_', '-')} is not for --method any-precision")

    def _check_levels(self) -> None:
        known = ", ".join(map(str, KBITS))
        if self.method == "any-precision":
            self._check_nested()
        elif self.kbits not in (*KBITS, AUTO):
            hint = ": several are for --method any-precision" if isinstance(self.kbits, (tuple, list)) else ""
            raise UsageError(f"expected kbits of {known} or {AUTO}, got {self.kbits}{hint}")
        for pattern, num_levels in self.kbits_for.items():
            if num_levels not in KBITS:
                raise UsageError(f"expected kbits of {known} for {pattern}, got {num_levels}")
        if (self.kbits == AUTO) != (self.target_bits is not None):
            given = "no target bits" if self.target_bits is None else f"kbits {self.kbits}"
            raise UsageError(f"expected --kbits {AUTO} with --target-bits BITS, such as 2.0, got {given}")
        least = math.log2(KBITS[0])
        if self.target_bits is not None and not least <= self.target_bits < math.inf:
            raise UsageError(
                f"expected target bits of at least {least:.3f}, which {KBITS[0]} levels take, got {self.target_bits:g}"
            )


@dataclass(frozen=True)
class TrainedConfig:
    """How layers are quantized while a network is trained. Options that are None are filled in by the method, and are
    an error where it has none of their kind.

    `wbits`, `abits` and `gbits` are bits of weights, activations and gradients, `kbits` the levels of the power-of-two
    codebook and `scale` what shares one; `input_scale` is XNOR-Net's K. `bits` are the widths of one network, whose
    narrower ones learn by `supervision`, and `calibrate_bits` those that are only calibrated. With `update` "quantized"
    the optimizer steps the quantized weights.
    """

    method: str = "dorefa"
    wbits: int | None = None
    abits: int | None = None
    gbits: int | None = None
    kbits: int | None = None
    scale: str | None = None
    input_scale: bool | None = None
    bits: tuple[int, ...] | None = None
    supervision: str | None = None
    calibrate_bits: tuple[int, ...] | None = None
    update: str = "float"
    skip: tuple[str, ...] = ()
    keep_first_last: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(self.skip))
        if self.method not in TRAINED:
            raise UsageError(f"expected a method of {', '.join(TRAINED)}, got {self.method!r}")
        own = TRAINED[self.method]
        for name in dict.fromkeys(option for options in TRAINED.values() for option in options):
            if getattr(self, name) is None:
                object.__setattr__(self, name, own.get(name))
            elif name not in own:
                raise UsageError(f"{name.replace('_', ' ')} are no option of {self.method}, which has {', '.join(own)}")
        for name in ("wbits", "abits", "gbits"):
            if getattr(self, name) not in (None, *BITS):
                raise UsageError(f"expected {name} of {', '.join(map(str, BITS))}, got {getattr(self, name)}")
        if self.method == "lsq" and self.wbits in (1, 16):
            raise UsageError(f"expected wbits of 2, 3, 4, 8 or {FLOAT} with lsq, got {self.wbits}")
        if self.kbits not in (None, *KBITS):
            raise UsageError(f"expected kbits of {', '.join(map(str, KBITS))}, got {self.kbits}")
        if self.scale not in (None, *SCALES):
            raise UsageError(f"expected a scale of {' or '.join(SCALES)}, got {self.scale!r}")
        if self.update not in UPDATES:
            raise UsageError(f"expected an update of the {' or '.join(UPDATES)} weights, got {self.update!r}")
        if self.bits is not None:
            self._check_widths(tuple(sorted(self.bits)), tuple(sorted(self.calibrate_bits or ())))

    def _check_widths(self, bits: tuple[int, ...], calibrated: tuple[int, ...]) -> None:
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "calibrate_bits", calibrated)
        together = (*bits, *calibrated)
        if not bits or len(set(together)) < len(together) or not set(WIDTHS).issuperset(together):
            known = f"1 to {WIDTHS[-2]} or {FLOAT}"
            raise UsageError(f"expected bits of {known}, each once, got {', '.join(map(str, together)) or 'none'}")
        if calibrated and calibrated[-1] > bits[-1]:
            raise UsageError(f"expected bits to calibrate below the {bits[-1]} that are trained, got {calibrated[-1]}")
        if self.supervision not in SUPERVISIONS:
            raise UsageError(f"expected supervision {', '.join(SUPERVISIONS)}, got {self.supervision!r}")
        if self.update != UPDATES[0]:
            raise UsageError(
                "expected --update float with any-precision: quantized weights of one width are no other's"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Those of the method itself."""
        return {name: getattr(self, name) for name in TRAINED[self.method]}


@dataclass(frozen=True)
class RuntimeConfig:
    """What the machine lends a command: `device` auto, cpu, cuda or cuda:N; `precision` of network passes (solvers
    choose their own), 16 for training and measuring alone; `threads` 0 leaves torch's own choice. In more than
    `max_memory` GiB nothing is kept that files can take.

    Of several processes there are `devices` on each of `num_nodes` hosts, None for as many as were started; `strategy`
    is lightning-fabric's, and one is lost that is silent for `timeout` seconds. `sync_batchnorm` takes the statistics
    of training batches from all processes.
    """

    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 128
    workers: int = 0
    threads: int = 0
    max_memory: float | None = None
    devices: int | None = None
    num_nodes: int | None = None
    strategy: str = "auto"
    timeout: int = 60
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        if self.precision not in TRAINING_PRECISIONS:
            raise UsageError(f"expected a precision of {', '.join(TRAINING_PRECISIONS)}, got {self.precision!r}")
        if self.batch_size < 1:
            raise UsageError(f"expected a batch size of at least 1, got {self.batch_size}")
        if self.workers < 0 or self.threads < 0:
            raise UsageError(f"expected no negative workers or threads, got {self.workers} and {self.threads}")
        if self.max_memory is not None and not self.max_memory > 0:
            raise UsageError(f"expected a positive --max-memory in GiB, got {self.max_memory:g}")
        for name in ("devices", "num_nodes", "timeout"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"expected {name.replace('_', ' ')} of at least 1, got {value}")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"expected a strategy of {' or '.join(STRATEGIES)}, got {self.strategy!r}")

    def images_at_once(self, image_size: int) -> int:
        """`batch_size`, or fewer of images over 128 pixels: what a network holds of them grows with their area."""
        return max(1, min(self.batch_size, self.batch_size * 128**2 // image_size**2))


@dataclass(frozen=True)
class RunConfig:
    """The five parts of a run."""

    network: NetworkConfig
    data: DataConfig
    calibration: CalibrationConfig
    recipe: RecipeConfig
    runtime: RuntimeConfig

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values, one table per part, of what the result depends on."""
        tables = asdict(self)
        tables["runtime"] = {name: value for name, value in tables["runtime"].items() if name not in PROCESSES}
        return tables

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "RunConfig":
        """A configuration from one flat table of option values, as the command line has them."""
        return cls(
            **{
                part: kind(**{entry.name: options[entry.name] for entry in fields(kind) if entry.name in options})
                for part, kind in parts().items()
            }
        )


def parts() -> dict[str, Any]:
    """The classes of the parts of a `RunConfig`, by the names of the parts."""
    return {part.name: part.type for part in fields(RunConfig)}


def option_names() -> list[str]:
    """What a run depends on, by name."""
    return [entry.name for kind in parts().values() for entry in fields(kind)]
