"""Random views are shifted, cropped and mirrored as the papers say, and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from ldnq.augmentation import PADDING, SMALL, Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, size: int) -> torch.Tensor:
    return torch.randint(1, 256, (n, 3, size, size), generator=generator(1), dtype=torch.uint8)


def all_shifts(image: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """The 81 crops of `image` (3, s, s) with a border of four black pixels."""
    size = image.shape[-1]
    padded = F.pad(image.float(), (PADDING,) * 4)
    views = [padded[:, y : y + size, x : x + size] for y in range(9) for x in range(9)]
    return torch.stack([view.flip(2) if mirrored else view for view in views])


def which_shift(view: torch.Tensor, image: torch.Tensor, mirrored: bool) -> list[int]:
    return (all_shifts(image, mirrored) == view).flatten(1).all(1).nonzero().flatten().tolist()


def test_a_small_picture_is_shifted_by_at_most_four_pixels_and_mirrored_every_second_time():
    images = pictures(300, 10)
    views = Augmentation(10)(images, generator())
    assert views.dtype == torch.float32
    plain = [which_shift(view, image, False) for view, image in zip(views, images)]
    mirrored = [which_shift(view, image, True) for view, image in zip(views, images)]
    assert all(len(a) + len(b) == 1 for a, b in zip(plain, mirrored))
    assert 110 < sum(map(len, mirrored)) < 190
    assert len({shift for found in plain + mirrored for shift in found}) > 70


def test_digits_are_never_mirrored():
    images = pictures(60, 10)
    views = Augmentation(10, flip=False)(images, generator())
    assert all(len(which_shift(view, image, False)) == 1 for view, image in zip(views, images))


@pytest.mark.parametrize("size", [16, SMALL + 16], ids=["small", "large"])
def test_the_same_seed_gives_the_same_views(size):
    images, augmentation = pictures(6, size), Augmentation(size)
    assert torch.equal(augmentation(images, generator(3)), augmentation(images, generator(3)))
    assert not torch.equal(augmentation(images, generator(3)), augmentation(images, generator(4)))


@pytest.mark.parametrize("size", [16, SMALL + 16], ids=["small", "large"])
def test_bytes_and_floats_give_the_same_views_and_stay_as_they_are(size):
    images, augmentation = pictures(4, size), Augmentation(size)
    before = images.clone()
    assert torch.equal(augmentation(images, generator()), augmentation(images.float(), generator()))
    assert torch.equal(images, before)


def ramps(n: int, size: int) -> torch.Tensor:
    """Images whose first channel says the column and whose second says the row."""
    along = torch.arange(size, dtype=torch.float32)
    x, y = along.expand(size, size), along[:, None].expand(size, size)
    return torch.stack([x, y, torch.zeros(size, size)]).expand(n, 3, size, size)


def test_a_large_picture_becomes_a_part_of_at_least_the_least_area_in_nearly_its_proportions():
    side, size = 96, 80
    views = Augmentation(size, flip=False)(ramps(200, side), generator())
    assert views.shape == (200, 3, size, size)
    middle = slice(size // 2 - 2, size // 2 + 2)
    # The ramp's slope is how many pixels of the picture one pixel of the view spans.
    spans = [views[:, 0, size // 2, middle].diff(dim=1).mean(1), views[:, 1, middle, size // 2].diff(dim=1).mean(1)]
    width, height = (span * size / side for span in spans)
    area = width * height
    assert area.min() >= 0.35 - 1e-3
    assert area.max() <= 1 + 1e-3
    assert area.max() - area.min() > 0.5
    assert (width / height).min() >= 3 / 4 - 1e-3
    assert (width / height).max() <= 4 / 3 + 1e-3


def test_a_part_never_reaches_over_the_edge_of_the_picture():
    side, size = 96, 80
    views = Augmentation(size, flip=False)(ramps(200, side), generator())
    middle = views[:, 0, size // 2, size // 2 - 1 : size // 2 + 1]
    centre, half = middle.mean(1), middle.diff(dim=1).flatten() * size / 2
    assert (centre - half).min() >= -0.5 - 1e-2
    assert (centre + half).max() <= side - 0.5 + 1e-2
    assert centre.std() > 1


def test_a_large_plain_picture_stays_plain_to_its_edges():
    images = torch.full((8, 3, 80, 80), 77.0)
    torch.testing.assert_close(Augmentation(80)(images, generator()), images)


def test_large_pictures_are_mirrored_every_second_time():
    views = Augmentation(80)(ramps(200, 80), generator())
    falling = (views[:, 0, 40, 41] < views[:, 0, 40, 40]).sum()
    assert 70 < falling < 130


def test_a_larger_picture_gives_views_of_the_wanted_size():
    assert Augmentation(96)(pictures(2, 128), generator()).shape == (2, 3, 96, 96)
