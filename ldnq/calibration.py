"""The small sample of training images that everything is learned from."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldnq import hdf5, ranks
from ldnq.augmentation import Augmentation
from ldnq.config import CalibrationConfig
from ldnq.datasets.images import Images
from ldnq.errors import DataError, UsageError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MIN_SAMPLES = 100
FOLDER = Path("calib_data")


@dataclass(frozen=True)
class CalibrationSet:
    """Ascending `indices` into the training images of `dataset`, and how they were drawn."""

    indices: np.ndarray
    dataset: str
    fingerprint: str
    ratio: float
    seed: int
    stratified: bool

    def save(self, path: Path) -> None:
        """Write an HDF5 file: the indices, never the images."""
        with hdf5.created(path) as file:
            file["indices"] = self.indices.astype("<i8")
            file.attrs.update(
                format_version=FORMAT_VERSION,
                dataset=self.dataset,
                fingerprint=self.fingerprint,
                ratio=self.ratio,
                seed=self.seed,
                stratified=self.stratified,
            )

    @classmethod
    def load(cls, path: Path) -> "CalibrationSet":
        """Read what `save` wrote; raises `DataError` where the file is something else."""
        if not path.is_file():
            raise DataError(f"no calibration set {path}: draw one with 'ldnq sample'")
        try:
            with hdf5.opened(path) as file:
                version = int(file.attrs["format_version"])
                if version != FORMAT_VERSION:
                    raise DataError(f"calibration set {path} has format {version}, expected {FORMAT_VERSION}")
                return cls(
                    hdf5.read_flat(file, "indices", "<i8").astype(np.int64),
                    str(file.attrs["dataset"]),
                    str(file.attrs["fingerprint"]),
                    float(file.attrs["ratio"]),
                    int(file.attrs["seed"]),
                    bool(file.attrs["stratified"]),
                )
        except (OSError, KeyError, ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise DataError(f"{path} is not a calibration set: draw one with 'ldnq sample'") from error

    def check(self, dataset: str, images: Images, path: Path) -> None:
        """Raise `DataError` unless this set was drawn from exactly these images."""
        if (self.dataset, self.fingerprint) != (dataset, images.fingerprint()):
            raise DataError(
                f"calibration set {path} was drawn from {self.dataset} ({self.fingerprint}), not from these images of "
                f"{dataset} ({images.fingerprint()}): use --resample or another --calibration"
            )
        if len(self.indices) == 0 or self.indices.min() < 0 or self.indices.max() >= len(images):
            raise DataError(f"calibration set {path} points outside the {len(images)} training images: use --resample")


def draw(images: Images, dataset: str, config: CalibrationConfig) -> CalibrationSet:
    """A uniform sample without replacement; labels are looked at only if `config.stratified`.

    At least 100 images (all, where there are fewer) unless `config.samples` says otherwise; raises `UsageError` where
    more are asked for than there are.
    """
    total = len(images)
    wanted = config.samples or max(round(total * config.ratio), min(MIN_SAMPLES, total))
    if wanted > total:
        raise UsageError(f"expected at most {total} calibration images, as many as there are, got {wanted}")
    if config.samples is None and wanted > round(total * config.ratio):
        log.warning(
            "%g%% of %d images is %d: taking %d (%.1f%%) instead; --samples N asks for fewer",
            100 * config.ratio, total, round(total * config.ratio), wanted, 100 * wanted / total,
        )  # fmt: skip
    rng = np.random.default_rng(config.seed)
    if config.stratified:
        if not images.labelled:
            raise UsageError("expected labelled images for a stratified draw, found none: leave out --stratified")
        indices = _stratified(images.labels, wanted, rng)
    else:
        indices = rng.choice(total, wanted, replace=False)
    return CalibrationSet(
        np.sort(indices), dataset, images.fingerprint(), wanted / total, config.seed, config.stratified
    )


def load_or_draw(images: Images, dataset: str, config: CalibrationConfig) -> tuple[CalibrationSet, Path]:
    """The set that `config` names, drawn and kept in `calib_data/` if it does not exist yet, and its file."""
    return ranks.agreed(lambda: _load_or_draw(images, dataset, config))


def _load_or_draw(images: Images, dataset: str, config: CalibrationConfig) -> tuple[CalibrationSet, Path]:
    path = Path(config.calibration) if config.calibration else default_path(dataset, config)
    if config.calibration or (path.exists() and not config.resample):
        found = CalibrationSet.load(path)
        found.check(dataset, images, path)
        log.info("calibration set %s: %d images", path, len(found.indices))
        return found, path
    drawn = draw(images, dataset, config)
    drawn.save(path)
    log.info("calibration set drawn: %d of %d images, kept in %s", len(drawn.indices), len(images), path)
    return drawn, path


def default_path(dataset: str, config: CalibrationConfig) -> Path:
    """Where the set drawn by `config` is kept."""
    amount = f"n{config.samples}" if config.samples else f"r{config.ratio:g}"
    return FOLDER / f"{dataset}-{amount}-s{config.seed}{'-stratified' if config.stratified else ''}.h5"


@dataclass(frozen=True)
class CalibrationImages:
    """The images themselves, in memory: what stages learn from.

    `images` (n, …) in any units, `normalize` takes a batch on `device` to the network's units, `augmentation` makes
    random views of a batch before that. `batch_size` bounds the memory of passes that do not train, `max_memory`, in
    GiB, that of all, as far as files can take what memory has no room for. Nothing learns from the images `held_out`,
    if there are any: what was learned is judged by them.
    """

    images: Tensor
    normalize: Callable[[Tensor], Tensor]
    augmentation: Augmentation | None
    batch_size: int
    device: torch.device
    held_out: "CalibrationImages | None" = None
    max_memory: float | None = None

    def __len__(self) -> int:
        return len(self.images)

    def set_apart(self, share: float, generator: torch.Generator) -> "CalibrationImages":
        """The images without a random `share` of them, which become those `held_out`; of two images or more both parts
        have at least one."""
        if len(self) < 2:
            return self
        order = torch.randperm(len(self), generator=generator)
        count = min(max(1, round(share * len(self))), len(self) - 1)
        held_out = replace(self, images=self.images[order[:count]])
        return replace(self, images=self.images[order[count:]], held_out=held_out)

    @property
    def number_of_batches(self) -> int:
        """How many there are."""
        return -(-len(self) // self.batch_size)

    def batches(self) -> Iterator[Tensor]:
        """All images once, in order, as the network takes them."""
        for batch in self.images.split(self.batch_size):
            yield self.normalize(batch.to(self.device))

    def views(self, rounds: int, generator: torch.Generator) -> Iterator[Tensor]:
        """All images once as they are, then `rounds` times in random views."""
        yield from self.batches()
        yield from islice(self.random_batches(self.batch_size, generator), rounds * self.number_of_batches)

    def random_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Shuffled and augmented batches without end; the last of a round may be smaller."""
        while True:
            for chosen in torch.randperm(len(self.images), generator=generator).split(batch_size):
                batch = self.images[chosen].to(self.device)
                with torch.autocast(self.device.type, enabled=False):
                    batch = self.normalize(self.augmentation(batch, generator) if self.augmentation else batch)
                yield batch


def _stratified(labels: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Each class in proportion, by largest remainder."""
    classes, counts = np.unique(labels, return_counts=True)
    share = counts * wanted / len(labels)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: wanted - quota.sum()]] += 1
    members = [rng.choice(np.flatnonzero(labels == label), n, replace=False) for label, n in zip(classes, quota)]
    return np.concatenate(members)
