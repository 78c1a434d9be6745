"""Pictures become the numbers that torchvision's transforms give."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from ldnq.errors import UsageError
from ldnq.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture with detail: noise enlarged, so that a shift by one pixel changes it."""
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.BICUBIC).convert(mode)


def as_torchvision(image: Image.Image, resize: int, size: int) -> np.ndarray:
    return np.array(Compose([Resize(resize), CenterCrop(size)])(image.convert("RGB"))).transpose(2, 0, 1)


SHAPES = {
    "landscape": (500, 375),
    "portrait": (333, 500),
    "square": (400, 400),
    "panorama": (900, 120),
    "smaller-than-the-input": (40, 30),
    "odd-rest-of-the-crop": (333, 375),
    "fraction-above-one-half": (228, 256),
    "one-pixel-high": (19, 1),
}


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (32, None), (64, 73)], ids=["224of256", "32", "64of73"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_picture_is_resized_and_cropped_as_torchvision_does(shape, size, resize):
    image = photo(*shape)
    ours = Preprocessing(size, resize=resize).to_uint8(image)
    assert ours.dtype == torch.uint8
    np.testing.assert_array_equal(ours.numpy(), as_torchvision(image, resize or size, size))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_picture_comes_out_as_three_channels(mode):
    ours = Preprocessing(24).to_uint8(photo(60, 48, mode))
    assert ours.shape == (3, 24, 24)
    np.testing.assert_array_equal(ours.numpy(), as_torchvision(photo(60, 48, mode), 24, 24))


def test_the_channels_of_a_grey_picture_are_equal():
    red, green, blue = Preprocessing(24).to_uint8(photo(60, 48, "L"))
    assert torch.equal(red, green)
    assert torch.equal(green, blue)


@pytest.mark.parametrize("resize", [None, 36], ids=["crop-only", "with-resize"])
def test_a_picture_that_has_the_size_already_is_untouched_bit_for_bit(resize):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ours = Preprocessing(32, resize=resize).to_uint8(Image.fromarray(pixels))
    np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy(), pixels)


def test_numbers_are_normalized_as_torchvision_does():
    image = photo(32, 32)
    preprocessing = Preprocessing(32)
    reference = Compose([ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])(image)
    ours = preprocessing.normalize(preprocessing.to_uint8(image)[None])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours[0], reference, rtol=1e-5, atol=1e-5)


def test_floats_between_0_and_255_are_normalized_like_the_same_bytes():
    images = torch.arange(0, 192, dtype=torch.uint8).view(1, 3, 8, 8)
    preprocessing = Preprocessing(8)
    assert torch.equal(preprocessing.normalize(images), preprocessing.normalize(images.double()))


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(32), Preprocessing(224, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25), resize=256)],
    ids=["plain", "all-fields"],
)
def test_preprocessing_survives_json(preprocessing):
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"image_size": 32, "mean": [0, 0, 0]},
        {"image_size": "large", "mean": [0, 0, 0], "std": [1, 1, 1]},
        {"image_size": 32, "mean": 0.5, "std": [1, 1, 1]},
        {"image_size": 32, "mean": [0, 0], "std": [1, 1]},
        {"image_size": None, "mean": [0, 0, 0], "std": [1, 1, 1]},
    ],
    ids=["empty", "no-std", "size-is-a-word", "mean-is-a-number", "two-channels", "no-size"],
)
def test_a_damaged_description_is_refused(values):
    with pytest.raises(UsageError, match="expected"):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"image_size": 7}, "got 7"),
        ({"image_size": 4097}, "got 4097"),
        ({"image_size": 32, "mean": (0.5, 0.5)}, "three means"),
        ({"image_size": 32, "std": (0.5,) * 4}, "three means"),
        ({"image_size": 32, "mean": (0, 0, float("nan"))}, "finite means"),
        ({"image_size": 32, "std": (1, 1, 0)}, "positive deviations"),
        ({"image_size": 32, "std": (1, 1, float("inf"))}, "positive deviations"),
        ({"image_size": 32, "resize": 31}, "at least the image size 32, got 31"),
    ],
    ids=["tiny", "huge", "two-means", "four-deviations", "nan", "zero", "infinite", "resize-below-size"],
)
def test_values_that_cannot_be_used_are_refused(arguments, found):
    with pytest.raises(UsageError, match=found):
        Preprocessing(**arguments)
