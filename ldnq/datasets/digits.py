"""scikit-learn's 1,797 handwritten digits: real data that needs no download."""

from pathlib import Path

import numpy as np
from PIL import Image

from ldnq.datasets.images import ArrayImages, Images
from ldnq.datasets.registry import DatasetFamily, datasets

TEST_FRACTION = 0.25
SPLIT_SEED = 0


def load_digits(root: Path, split: str, download: bool = False) -> Images:
    """The images of `split` of a fixed stratified split, enlarged from 8x8 greys to 32x32 RGB."""
    from sklearn.datasets import load_digits as embedded
    from sklearn.model_selection import train_test_split

    digits = embedded()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(grey)), test_size=TEST_FRACTION, random_state=SPLIT_SEED, stratify=digits.target
    )
    chosen = np.sort(train if split == "train" else test)
    pixels = np.stack([_enlarge(grey[index]) for index in chosen])
    return ArrayImages(pixels, digits.target[chosen], tuple("0123456789"))


def _enlarge(grey: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(grey).resize((32, 32), Image.Resampling.BILINEAR).convert("RGB"))


datasets.add(
    "digits",
    DatasetFamily(
        "digits",
        load_digits,
        "1,797 handwritten digits that come with scikit-learn, as 32x32 RGB",
        10,
        32,
        mean=(0.305, 0.305, 0.305),
        std=(0.325, 0.325, 0.325),
        flip=False,
        embedded=True,
        paper="Alpaydin and Kaynak 1998",
    ),
)
