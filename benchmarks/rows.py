"""What benchmarks share: `--quick`, and the rows behind a table, one run each, kept in a JSON file, so that a benchmark
can be stopped and continued."""

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import click

from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig, RecipeConfig, RunConfig, RuntimeConfig
from ldnq.files import write_json, write_text

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
FIGURES = DOCS / "figures"
SAMPLES = 500
FEW = 64
KEPT = (
    "teacher_top1", "quantized_top1", "top1_drop", "packed_bytes", "float_bytes", "bits_per_weight", "eval_samples",
)  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """What a row is a run of, but for the seed of the calibration draw."""

    model: str
    dataset: str
    kbits: int
    scale: str = "layer"
    preset: str = "paper"
    image_size: int | None = None
    calibration_samples: int = SAMPLES
    synthesized_samples: int = 0


quick_option = click.option(
    "--quick", is_flag=True, is_eager=True, help="Less of everything, in a minute or two: a look, no table."
)


def data_root_option(what: str) -> Callable[[Callable], Callable]:
    """`--data-root`, which `--quick` does without: it takes the digits."""

    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is None and not ctx.params.get("quick"):
            raise click.MissingParameter(ctx=ctx, param=param)
        return value

    return click.option("--data-root", callback=check, help=what)


def looking() -> bool:
    """Whether the benchmark that runs was called with `--quick`: it writes nothing."""
    context = click.get_current_context(silent=True)
    return bool(context and context.params.get("quick"))


def samples() -> int:
    """How many calibration images to take."""
    return FEW if looking() else SAMPLES


def data_of(dataset: str, root: str | None, **options: Any) -> DataConfig:
    """A dataset in its folder, or for a look the digits, which need none."""
    return DataConfig("digits") if looking() else DataConfig(dataset, root, **options)


def results() -> Path:
    """Where trainings have their folders; those of a look are in nobody's way."""
    return Path(mkdtemp()) if looking() else Path("results")


def load(path: Path) -> list[dict[str, Any]]:
    """The rows in a file; a look starts without any."""
    return json.loads(path.read_text()) if path.exists() and not looking() else []


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Keep all rows, unless this is a look."""
    if not looking():
        write_json(path, rows)


class Rows:
    """The runs in the file `path`; those of weights that have been trained anew since are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [row for row in load(path) if row["weights"] == digest(row["model"], row["dataset"])]

    def of(self, configuration: Configuration) -> list[dict[str, Any]]:
        """The rows of one configuration, a seed each."""
        return [row for row in self.rows if asdict(configuration).items() <= row.items()]

    def complete(
        self,
        configurations: Iterable[Configuration],
        seeds: Iterable[int],
        roots: Mapping[str, str | None],
        precision: str,
    ) -> None:
        """Run what is not there yet and has weights and data, and write the file after every run.

        Seed by seed, so that a table of all configurations comes early.
        """
        configurations = list(configurations)
        for seed in seeds:
            for configuration in configurations:
                weights = digest(configuration.model, configuration.dataset)
                done = any(row["seed"] == seed for row in self.of(configuration))
                if weights is None or done or configuration.dataset not in roots:
                    continue
                metrics = measure(configuration, seed, roots[configuration.dataset], precision)
                click.echo(f"{configuration}, seed {seed}: drop {metrics['top1_drop']:.2f}")
                kept = {name: metrics[name] for name in KEPT}
                self.rows.append(
                    {"weights": weights, "seed": seed, "precision": precision} | asdict(configuration) | kept
                )
                save(self.path, self.rows)


class Kept:
    """Trainings in a JSON file, each a row by name of so many epochs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = load(path)

    def of(self, name: str, epochs: int | None = None) -> dict[str, Any] | None:
        """The run of the row called `name` with so many epochs, or with the most."""
        found = [run for run in self.runs if run["row"] == name and epochs in (None, run["epochs"])]
        return max(found, key=lambda run: run["epochs"], default=None)

    def add(self, run: dict[str, Any]) -> None:
        """Keep one more."""
        self.runs.append(run)
        save(self.path, self.runs)
        click.echo(f"{run['row']}, {run['epochs']} epochs: {run['top1']}")


def publish(name: str, text: str) -> None:
    """Write the table `name` beside this script, and where the README and the documentation show it, between
    `<!-- benchmarks/NAME -->` and `<!-- end -->`; print it where this is a look."""
    if looking():
        click.echo(text)
        return
    write_text(HERE / name, text)
    shown = re.compile(rf"(<!-- benchmarks/{re.escape(name)} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    for page in (HERE.parent / "README.md", *DOCS.glob("*.md")):
        found = page.read_text(encoding="utf-8")
        if (changed := shown.sub(lambda match: match[1] + text, found)) != found:
            write_text(page, changed)


def digest(model: str, dataset: str) -> str | None:
    """Of the weights that ship; None where there are none."""
    path = HERE.parent / "pretrained" / f"{model}-{dataset}.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else None


def measure(configuration: Configuration, seed: int, data_root: str | None, precision: str) -> dict[str, Any]:
    """The metrics of one run."""
    from ldnq.pipeline import run

    images = CalibrationConfig(
        samples=configuration.calibration_samples or None,
        calibration_data=configuration.calibration_samples > 0,
        synthesize=configuration.synthesized_samples,
        seed=seed,
    )
    config = RunConfig(
        NetworkConfig(configuration.model),
        DataConfig(configuration.dataset, data_root, image_size=configuration.image_size),
        images,
        RecipeConfig(preset=configuration.preset, kbits=configuration.kbits, scale=configuration.scale),
        RuntimeConfig(precision=precision),
    )
    with TemporaryDirectory() as folder:
        return run(config, Path(folder) / "run").metrics


def spread(rows: list[dict[str, Any]], name: str) -> str:
    """Mean and standard deviation over the rows, as far as there are any."""
    values = [row[name] for row in rows]
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
