"""Small image folders, written as users have them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_images(tmp_path) -> Callable[[Mapping[str, int]], Path]:
    """`write_images({"train/cat": 3})` puts three PNG files, all different, into that folder below a new root."""

    def write(counts: Mapping[str, int], seed: int = 0, root: str = "images") -> Path:
        rng = np.random.default_rng(seed)
        base = tmp_path / root
        for folder, count in counts.items():
            (base / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(base / folder / f"{number}.png")
        return base

    return write
