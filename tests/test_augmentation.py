"""Random views are shifted, cropped and mirrored as the papers say, and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from ldnq.augmentation import PADDING, SMALL, Augmentation, mix


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


def test_brightness_contrast_and_saturation_change_within_their_share():
    images = torch.full((200, 3, 8, 8), 100.0)
    bright = Augmentation(8, flip=False, colour=0.3)._recolour(images, generator())[:, 0, 0, 0]
    assert 70 <= bright.min() < 75
    assert 125 < bright.max() <= 130
    ramp = torch.linspace(90, 110, 64).view(1, 1, 8, 8).expand(200, 3, 8, 8)
    contrast = Augmentation(8, flip=False, colour=0.3)._recolour(ramp, generator())
    spread = contrast.amax((1, 2, 3)) - contrast.amin((1, 2, 3))
    assert 20 * 0.49 <= spread.min() < 20 * 0.7
    assert 20 * 1.4 < spread.max() <= 20 * 1.69
    tinted = torch.tensor([90.0, 100.0, 110.0]).view(1, 3, 1, 1).expand(200, 3, 8, 8)
    tint = Augmentation(8, flip=False, colour=0.3)._recolour(tinted, generator())
    assert (tint[:, 2] - tint[:, 0]).std() > 1


def test_colours_stay_within_those_of_an_image():
    views = Augmentation(8, colour=0.9)(pictures(50, 8), generator())
    assert views.min() >= 0
    assert views.max() <= 255


def test_a_share_of_the_images_is_mixed_with_another():
    # Every image has one value of its own: what is mixed shows two of them.
    values = torch.arange(400.0)
    mixed = mix(values.view(-1, 1, 1, 1).expand(400, 3, 16, 16), 0.5, generator())
    untouched = (mixed == values.view(-1, 1, 1, 1)).flatten(1).all(1)
    assert 160 < untouched.sum() < 250
    plain = (mixed == mixed[:, :1, :1, :1]).flatten(1).all(1)
    blended, pasted = plain & ~untouched, ~plain
    assert 60 < blended.sum() < 140
    assert 60 < pasted.sum() < 140
    for image, own in zip(mixed[pasted], values[pasted]):
        other = image[image != own]
        assert len(other.unique()) == 1
        rows, columns = (image[0] != own).any(1).nonzero(), (image[0] != own).any(0).nonzero()
        assert len(other) == 3 * (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


def test_without_a_share_nothing_is_mixed_and_vectors_are_blended_alone():
    images = torch.rand(20, 3, 6, 6)
    assert torch.equal(mix(images, 0.0, generator()), images)
    vectors = torch.arange(50.0)[:, None].expand(50, 4)
    mixed = mix(vectors, 1.0, generator())
    assert torch.equal(mixed, mixed[:, :1].expand(50, 4))
