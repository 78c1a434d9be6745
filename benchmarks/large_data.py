"""Drawing 1% of many images, as a folder by class and as tar shards, with an index of them and without one.

    pip install ".[webdataset]"
    python benchmarks/large_data.py [--images 200000] [--quick]

writes `large_data.md`: for each form how many times as long a first run takes to find the images and to draw, as a run
that finds their index, and how large that is. All images are one of a few bytes: none is read. Medians of runs that
take turns; names are in the memory of the system, so that slow disks, where listing takes longer, gain more.
"""

import io
import os
import tarfile
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click
from PIL import Image
from rows import publish, quick_option

from ldnq.calibration import draw
from ldnq.config import CalibrationConfig, DataConfig
from ldnq.data import load_data
from ldnq.datasets import datasets, index

CLASSES, SHARDS, REPEATS = 200, 20, 3


@click.command()
@click.option("--images", default=200_000, show_default=True)
@quick_option
def main(images: int, quick: bool) -> None:
    """Write the images, measure, and write the table."""
    images, repeats = (images // 10, 1) if quick else (images, REPEATS)
    lines = ["| images | as | first run, in runs with an index | index, bytes an image |", "|---|---|---|---|"]
    with TemporaryDirectory() as root:
        write_folder(Path(root) / "folder", images)
        write_shards(Path(root) / "shards", images)
        time.sleep(2 * index.TICK / 1e9)  # what has just changed is not kept
        for form, said in (("folder", f"a folder of {CLASSES} classes"), ("shards", f"{SHARDS} tar shards")):
            factor, size = measured(Path(root), form, images, repeats)
            lines.append(f"| {images:,} | {said} | {factor:.0f} | {size / images:.0f} |")
    publish("large_data.md", "\n".join(lines) + "\n")


def write_folder(folder: Path, images: int) -> None:
    """`train/<class>/<image>`."""
    picture = tiny()
    for label in range(CLASSES):
        path = folder / "train" / f"class{label:04}"
        path.mkdir(parents=True)
        for number in range(label, images, CLASSES):
            (path / f"image_{number:08}.png").write_bytes(picture)


def write_shards(folder: Path, images: int) -> None:
    """`train-<number>.tar` of images and labels."""
    folder.mkdir()
    picture = tiny()
    for number in range(SHARDS):
        with tarfile.open(folder / f"train-{number:04}.tar", "w") as archive:
            for image in range(number * images // SHARDS, (number + 1) * images // SHARDS):
                for suffix, content in (("png", picture), ("cls", str(image % CLASSES).encode())):
                    entry = tarfile.TarInfo(f"image_{image:08}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


def tiny() -> bytes:
    """The smallest picture there is."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


def measured(root: Path, form: str, images: int, repeats: int) -> tuple[float, int]:
    """How many times as long a run without an index takes, and the bytes of the index."""
    first, later = [], []
    for number in range(repeats):
        os.environ["LDNQ_CACHE"] = str(root / f"cache-{form}-{number}")
        first.append(seconds(root / form, images))
        later.append(seconds(root / form, images))
    (kept,) = Path(os.environ["LDNQ_CACHE"]).iterdir()
    return median(first) / median(later), kept.stat().st_size


def seconds(root: Path, images: int) -> float:
    """Until a hundredth of the images are drawn."""
    begun = time.perf_counter()
    found = load_data(DataConfig("folder", str(root)), datasets.get("folder")).training
    drawn = draw(found, "folder", CalibrationConfig(samples=images // 100))
    taken = time.perf_counter() - begun
    if len(found) != images or len(drawn.indices) != images // 100:
        raise click.ClickException(f"{root}: found {len(found)} of {images} images")
    return taken


if __name__ == "__main__":
    main()
