"""SVHN files that are not the published ones are refused."""

import numpy as np
import pytest
from scipy.io import savemat

from ldnq.datasets import datasets
from ldnq.errors import DataError


def _nothing(path):
    pass


def _small(path):
    """The published form, but of two images."""
    savemat(path, {"X": np.zeros((32, 32, 3, 2), dtype=np.uint8), "y": np.array([[10], [1]], dtype=np.uint8)})


def _junk(path):
    path.write_bytes(b"no matrix")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("fill", [_nothing, _small, _junk], ids=["no-file", "two-images", "junk"])
def test_a_folder_without_the_published_file_is_refused_in_one_line(tmp_path, fill, split):
    fill(tmp_path / f"{split}_32x32.mat")
    with pytest.raises(DataError, match=rf"no SVHN in .*: expected {split}_32x32\.mat; --download fetches it") as error:
        datasets.get("svhn").load(tmp_path, split, False)
    assert "\n" not in str(error.value)


def test_house_digits_are_never_mirrored():
    assert not datasets.get("svhn").flip
