"""What a run's report shows and its other files do not hold: one small file, so that no report needs the images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from ldnq import hdf5
from ldnq.errors import DataError

FORMAT_VERSION = 1
# In bytes: what is smaller only grows when it is compressed.
LARGE = 4096


@dataclass(frozen=True)
class LayerDetails:
    """A quantized layer: its `levels` (k,) in units of the scale, the share of weights on each, the `histogram` (bins,)
    of its float weights from −`reach` to `reach` in the same units, and the solver's `errors` by iteration."""

    name: str
    levels: np.ndarray
    shares: np.ndarray
    histogram: np.ndarray
    reach: float
    errors: np.ndarray


@dataclass(frozen=True)
class Outcomes:
    """What both networks say of the test images (n,): `labels`, likeliest classes and the confidence in them."""

    labels: np.ndarray
    teacher: np.ndarray
    teacher_confidence: np.ndarray
    student: np.ndarray
    student_confidence: np.ndarray

    @property
    def agreement(self) -> float:
        """Percent of the images that both networks classify alike."""
        return 100 * float((self.teacher == self.student).mean())

    def disagreements(self, count: int) -> np.ndarray:
        """The images of which the networks are surest that they show different things: of those that they classify
        differently the ones whose lower confidence is highest, in descending order."""
        sure = np.minimum(self.teacher_confidence, self.student_confidence)
        sure = np.where(self.teacher != self.student, sure, -1)
        return np.argsort(-sure, kind="stable")[: min(count, int((sure >= 0).sum()))]


@dataclass(frozen=True)
class Details:
    """The layers in order of execution; `outcomes` with the `class_names` and pictures (JPEG) of the disagreements by
    the number of their image, where there were labelled test images."""

    layers: tuple[LayerDetails, ...]
    outcomes: Outcomes | None = None
    class_names: tuple[str, ...] = ()
    pictures: Mapping[int, bytes] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write an HDF5 file of flat datasets, rows of different lengths filled up with NaN."""
        arrays: dict[str, list[str] | np.ndarray] = {
            "layers/names": [layer.name for layer in self.layers],
            "layers/levels": _stacked([layer.levels for layer in self.layers]),
            "layers/shares": _stacked([layer.shares for layer in self.layers]),
            "layers/histograms": np.array([layer.histogram for layer in self.layers], np.uint32),
            "layers/reach": np.array([layer.reach for layer in self.layers], np.float32),
            "layers/errors": _stacked([layer.errors for layer in self.layers]),
        }
        with hdf5.created(path, libver="latest") as file:
            file.attrs["format_version"] = FORMAT_VERSION
            for name, values in arrays.items():
                _write(file, name, values)
            if self.outcomes:
                for name, values in vars(self.outcomes).items():
                    kind = np.float16 if name.endswith("confidence") else np.uint16
                    _write(file, f"outcomes/{name}", values.astype(kind))
                _write(file, "class_names", list(self.class_names))
                _write(file, "pictures/indices", np.array(list(self.pictures), np.int64))
                sizes = np.array([len(picture) for picture in self.pictures.values()], np.int64)
                _write(file, "pictures/sizes", sizes)
                _write(file, "pictures/bytes", np.frombuffer(b"".join(self.pictures.values()), np.uint8))

    @classmethod
    def load(cls, path: Path) -> "Details":
        """Read what `save` wrote; raises `DataError` where the file is something else."""
        try:
            with hdf5.opened(path) as file:
                version = int(file.attrs["format_version"])
                if version != FORMAT_VERSION:
                    raise DataError(f"{path} has format {version}, expected {FORMAT_VERSION}")
                layers = tuple(_read_layers(file["layers"]))
                if "outcomes" not in file:
                    return cls(layers)
                outcomes = Outcomes(**{name: values[:] for name, values in file["outcomes"].items()})
                ends = np.cumsum(file["pictures/sizes"][:])
                parts = np.split(file["pictures/bytes"][:], ends[:-1]) if len(ends) else []
                pictures = dict(zip(file["pictures/indices"][:].tolist(), (part.tobytes() for part in parts)))
                return cls(layers, outcomes, tuple(file["class_names"].asstr()[:]), pictures)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{path} does not hold the details of a run: remove it, or run again") from error


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows), default=0)), np.nan, np.float32)
    for row, values in zip(table, rows):
        row[: len(values)] = values
    return table


def _read_layers(group: h5py.Group) -> Iterator[LayerDetails]:
    names, levels, shares, histograms, reach, errors = (
        group[name][:] for name in ("names", "levels", "shares", "histograms", "reach", "errors")
    )
    for position, name in enumerate(names):
        rows = (table[position][~np.isnan(table[position])] for table in (levels, shares, errors))
        own_levels, own_shares, own_errors = rows
        yield LayerDetails(
            name.decode(), own_levels, own_shares, histograms[position], float(reach[position]), own_errors
        )


def _write(file: h5py.File, name: str, values: list[str] | np.ndarray) -> None:
    if isinstance(values, list):
        file.create_dataset(name, data=values, dtype=h5py.string_dtype())
    else:
        file.create_dataset(name, data=values, compression="gzip" if values.nbytes > LARGE else None)
