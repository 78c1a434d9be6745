"""`ldnq sample`."""

from typing import Any

import click

from ldnq.commands import console, options
from ldnq.commands.completion import complete
from ldnq.config import CalibrationConfig, DataConfig


@click.command("sample", short_help="Draw a calibration set.")
@click.option(
    "--dataset", metavar="NAME", required=True, shell_complete=complete("datasets"),
    help="A known dataset; see 'ldnq list datasets'.",
)  # fmt: skip
@click.option("--data-root", type=click.Path(), help="The dataset's own folder, or its tar shards.")
@click.option("--download", is_flag=True, help="Fetch the dataset where torchvision can.")
@options.calibration_options
def sample_command(dataset: str, data_root: str | None, download: bool, **values: Any) -> None:
    """Draw a calibration set and keep it in calib_data/: indices of training images, never the images.

    \b
    ldnq sample --dataset cifar10 --ratio 0.01 --seed 1
    """
    options.settle_calibration(values)
    config = CalibrationConfig(**values)
    with console.progress():
        import numpy as np

        from ldnq.calibration import load_or_draw
        from ldnq.data import load_data
        from ldnq.datasets import datasets

        data = load_data(DataConfig(dataset, data_root, download), datasets.get(dataset))
        calibration, path = load_or_draw(data.training, dataset, config)
    drawn = len(calibration.indices)
    rows = [("images", f"{drawn:,} of {len(data.training):,}"), ("file", str(path))]
    if data.training.labelled:
        counts = np.bincount(data.training.labels[calibration.indices], minlength=len(data.class_names))
        rows += [(f"class {name}", str(count)) for name, count in zip(data.class_names, counts)]
    console.table(rows)
