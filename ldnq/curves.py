"""The curves of a training: a row an epoch, as a table in the run's folder and for TensorBoard."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldnq import tensorboard
from ldnq.errors import DataError
from ldnq.files import write_text

# Losses are means over images, accuracies percent, `lr` is the rate of the epoch's last step; what was not measured is
# left out. Beside them their names in TensorBoard.
NAMES = {
    "loss": "train/loss",
    "top1": "train/top-1",
    "lr": "train/learning rate",
    "held_out_loss": "held-out/loss",
    "held_out_top1": "held-out/top-1",
    "test_top1": "test/top-1",
}
FILE = "training.csv"

Row = dict[str, float]


def log(row: Mapping[str, float]) -> None:
    """Hand the row of an epoch to TensorBoard."""
    for column, name in NAMES.items():
        if column in row:
            tensorboard.scalar(name, row[column], int(row["epoch"]))


def write(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Replace the table at `path`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("epoch", *NAMES), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {name: f"{value:.6g}" for name, value in row.items() if name != "epoch"}
        writer.writerow({"epoch": int(row["epoch"])} | values)
    write_text(path, text.getvalue())


def read(path: Path) -> list[Row]:
    """The rows of the table at `path`; raises `DataError` where it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"expected a table of training at {path}, found none that can be read: {error}") from error
