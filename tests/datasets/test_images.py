"""Collections of images: what they hold, how they are told apart, and what is said of damaged files."""

import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldnq.datasets.images import ArrayImages, JoinedImages, Prepared, in_memory, loader
from ldnq.datasets.listing import class_folders, flat_folder
from ldnq.errors import DataError
from ldnq.preprocessing import Preprocessing


def pixels(n: int = 5, seed: int = 0, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def array_images(seed: int = 0, labels=(0, 1, 2, 1, 0)) -> ArrayImages:
    return ArrayImages(pixels(len(labels), seed), labels, "abc")


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_an_array_gives_back_its_pictures_and_labels():
    images = array_images()
    assert len(images) == 5
    assert images.labelled
    assert images.labels.dtype == np.int64
    assert images.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(np.array(images.picture(3)), pixels()[3])


def test_equal_arrays_have_equal_fingerprints():
    assert array_images().fingerprint() == array_images().fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        array_images(seed=1),
        array_images(labels=(0, 1, 2, 1, 1)),
        array_images(labels=(0, 1, 2, 1)),
        ArrayImages(pixels(), np.full(5, -1), ()),
    ],
    ids=["other-pixels", "another-label", "one-image-less", "no-labels"],
)
def test_arrays_that_differ_have_fingerprints_that_differ(other):
    assert other.fingerprint() != array_images().fingerprint()


def test_an_array_is_not_copied_and_its_fingerprint_does_not_depend_on_the_order_in_memory():
    turned = np.asfortranarray(pixels(2000))
    images = ArrayImages(turned, np.zeros(2000), "a")
    assert np.shares_memory(images.pixels, turned)
    assert images.fingerprint() == ArrayImages(np.ascontiguousarray(turned), np.zeros(2000), "a").fingerprint()
    np.testing.assert_array_equal(np.array(images.picture(1999)), turned[1999])


def test_joined_images_are_those_of_the_parts_in_order():
    parts = [array_images(0, (0, 1)), array_images(1, (2,)), array_images(2, (1, 0, 2))]
    joined = JoinedImages(parts)
    assert joined.labels.tolist() == [0, 1, 2, 1, 0, 2]
    assert joined.class_names == ("a", "b", "c")
    expected = np.concatenate([part.pixels for part in parts])
    np.testing.assert_array_equal(np.stack([joined.picture(index) for index in range(6)]), expected)


def test_joined_images_have_the_fingerprint_of_their_parts():
    first, second = array_images(0), array_images(1)
    assert JoinedImages([first, second]).fingerprint() == JoinedImages([array_images(0), second]).fingerprint()
    assert JoinedImages([first, second]).fingerprint() != JoinedImages([first, first]).fingerprint()


def test_classes_are_folders_in_sorted_order(write_images):
    images = class_folders(write_images({"dog": 2, "cat": 1, "ant": 3}))
    assert images.class_names == ("ant", "cat", "dog")
    assert images.labels.tolist() == [0, 0, 0, 1, 2, 2]
    assert images.labelled


def test_pictures_are_those_on_disk(write_images):
    root = write_images({"a": 2, "b": 1})
    images = class_folders(root)
    for index, path in enumerate(("a/0.png", "a/1.png", "b/0.png")):
        np.testing.assert_array_equal(np.array(images.picture(index)), np.array(Image.open(root / path)))


def test_images_in_folders_within_a_class_count_as_that_class(write_images):
    images = class_folders(write_images({"a/left/far": 2, "a": 1, "b": 1}))
    assert images.labels.tolist() == [0, 0, 0, 1]


def test_files_that_are_no_images_are_passed_over(write_images):
    root = write_images({"a": 1, "b": 1})
    (root / "a" / "notes.txt").write_text("blurred")
    (root / "labels.csv").write_text("a,b")
    assert len(class_folders(root)) == 2


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "png", "bmp", "webp", "ppm", "tif", "TIFF"])
def test_the_usual_formats_are_read(tmp_path, extension):
    path = tmp_path / "a" / f"picture.{extension}"
    path.parent.mkdir()
    Image.fromarray(pixels(1)[0]).save(path)
    picture = class_folders(tmp_path).picture(0)
    assert (picture.mode, picture.size) == ("RGB", (8, 8))


def test_hidden_folders_are_no_classes(write_images):
    images = class_folders(write_images({"a": 1, "b": 2, ".ipynb_checkpoints": 1}))
    assert images.class_names == ("a", "b")
    assert len(images) == 3


def test_hidden_folders_within_a_class_are_passed_over(write_images):
    assert len(class_folders(write_images({"a": 1, "b": 2, "b/.ipynb_checkpoints": 1}))) == 3


@pytest.mark.parametrize("folder", ["a", "."], ids=["in-a-class", "in-a-flat-folder"])
def test_hidden_files_are_no_images(write_images, folder):
    root = write_images({folder: 1})
    (root / folder / "._0.png").write_bytes(b"\x00\x05\x16\x07 written by another system's file manager")
    assert len(flat_folder(root) if folder == "." else class_folders(root)) == 1


def test_an_empty_class_is_named(write_images):
    root = write_images({"a": 1, "b": 0})
    with pytest.raises(DataError, match=r"class folder .*b holds no images: fill or remove it") as error:
        class_folders(root)
    one_line(error)


def test_a_folder_without_classes_is_named(write_images):
    root = write_images({".": 2})
    with pytest.raises(DataError, match=r"expected one folder per class in .*images, found none"):
        class_folders(root)


def test_a_flat_folder_has_no_labels(write_images):
    images = flat_folder(write_images({".": 3}))
    assert len(images) == 3
    assert not images.labelled
    assert images.labels.tolist() == [-1, -1, -1]
    assert images.class_names == ()


def test_an_empty_flat_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected images, class folders or uncompressed tar shards in .*, found none"):
        flat_folder(tmp_path)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_any_kind_come_as_rgb(tmp_path, mode):
    path = tmp_path / "a" / ("picture.jpg" if mode == "CMYK" else "picture.png")
    path.parent.mkdir()
    Image.fromarray(pixels(1)[0]).convert(mode).save(path)
    picture = class_folders(tmp_path).picture(0)
    assert picture.mode == "RGB"
    with Image.open(path) as reference:
        np.testing.assert_array_equal(np.array(picture), np.array(reference.convert("RGB")))


def test_sixteen_bits_become_the_upper_eight(tmp_path):
    (tmp_path / "a").mkdir()
    values = np.arange(0, 2**16, 2**10, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a" / "picture.png")
    expected = np.repeat((values // 256)[..., None], 3, axis=2)
    np.testing.assert_array_equal(np.array(class_folders(tmp_path).picture(0)), expected)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_white_are_refused_by_path(tmp_path, kind):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / "a" / "picture.tif")
    with pytest.raises(DataError, match=r"picture\.tif: remove or replace it \(expected 8 or 16 bits a channel"):
        class_folders(tmp_path).picture(0)


def test_a_picture_taken_with_the_camera_on_its_side_comes_upright(tmp_path):
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned to the left: a quarter turn to the right makes up for it
    taken = pixels(1)[0][:, :4]
    Image.fromarray(taken).save(tmp_path / "a" / "picture.png", exif=exif)
    np.testing.assert_array_equal(np.array(class_folders(tmp_path).picture(0)), np.rot90(taken, -1))


def test_names_in_any_script_are_read_and_circles_of_links_passed_over(write_images):
    root = write_images({"a": 1})
    (root / "a" / "0.png").rename(root / "a" / "Größe 大きさ 🐈.png")
    (root / "a" / "round").symlink_to(root / "a")
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    images = class_folders(root)
    assert len(images) == 1
    assert images.picture(0).mode == "RGB"


def test_a_palette_picture_with_transparent_colours_is_read_without_a_warning(tmp_path):
    path = tmp_path / "a" / "picture.png"
    path.parent.mkdir()
    Image.fromarray(pixels(1)[0]).convert("P").save(path, transparency=bytes(range(256)))
    assert class_folders(tmp_path).picture(0).mode == "RGB"


def _junk(path):
    path.write_bytes(b"this is no picture")


def _empty(path):
    path.write_bytes(b"")


def _truncated(path):
    whole = path.with_suffix(".tmp")
    Image.fromarray(pixels(1, size=64)[0]).save(whole, "JPEG")
    path.write_bytes(whole.read_bytes()[:700])


@pytest.mark.parametrize("spoil", [_junk, _empty, _truncated], ids=["junk", "empty", "truncated"])
@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_an_image_that_cannot_be_decoded_is_named(write_images, spoil, extension):
    root = write_images({"a": 1})
    spoil(root / "a" / f"broken.{extension}")
    with pytest.raises(DataError, match=rf"cannot decode image .*broken\.{extension}: remove or replace it") as error:
        class_folders(root).picture(1)
    one_line(error)


def test_a_picture_that_would_unpack_to_gigabytes_is_named(write_images):
    root = write_images({"a": 1})
    path = root / "a" / "0.png"
    header = bytearray(path.read_bytes())
    header[16:24] = struct.pack(">II", 40_000, 40_000)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    path.write_bytes(header)
    with pytest.raises(DataError, match=r"cannot decode image .*0\.png: remove or replace it \(.*bomb") as error:
        class_folders(root).picture(0)
    one_line(error)


def test_a_picture_up_to_twice_as_large_as_pillow_likes_is_read_without_a_warning(write_images, monkeypatch):
    root = write_images({"a": 1})  # 108 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    assert class_folders(root).picture(0).size == (9, 12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="bomb"):
        class_folders(root).picture(0)


def test_an_image_that_vanished_is_named(write_images):
    root = write_images({"a": 2})
    images = class_folders(root)
    (root / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png is gone"):
        images.picture(1)


def test_the_fingerprint_of_an_image_that_vanished_names_it(write_images):
    root = write_images({".": 2})
    images = flat_folder(root)
    (root / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png") as error:
        images.fingerprint()
    one_line(error)


@pytest.mark.parametrize("folder", ["a", "."], ids=["in-a-class", "in-a-flat-folder"])
def test_links_to_nothing_are_passed_over(write_images, folder):
    root = write_images({folder: 2})
    (root / folder / "linked.png").symlink_to(root / "absent.png")
    images = flat_folder(root) if folder == "." else class_folders(root)
    assert len(images) == 2


def test_a_file_name_that_is_not_utf8_has_a_fingerprint(write_images):
    root = write_images({"a": 1})
    os.rename(root / "a" / "0.png", os.fsencode(root / "a") + b"/caf\xe9.png")
    images = class_folders(root)
    assert images.picture(0).mode == "RGB"
    assert images.fingerprint() == class_folders(root).fingerprint()


def test_a_copy_of_a_folder_has_the_same_fingerprint(write_images, tmp_path):
    root = write_images({"a": 2, "b": 2})
    shutil.copytree(root, tmp_path / "copy")
    assert class_folders(root).fingerprint() == class_folders(tmp_path / "copy").fingerprint()


def _remove(root):
    (root / "a" / "0.png").unlink()


def _relabel(root):
    (root / "a" / "0.png").rename(root / "b" / "9.png")


def _replace(root):
    Image.fromarray(pixels(1, size=20)[0]).save(root / "a" / "0.png")


def _rename_class(root):
    (root / "b").rename(root / "c")


@pytest.mark.parametrize("change", [_remove, _relabel, _replace, _rename_class], ids=lambda f: f.__name__[1:])
def test_a_folder_that_changed_has_another_fingerprint(write_images, change):
    root = write_images({"a": 2, "b": 2})
    before = class_folders(root).fingerprint()
    change(root)
    assert class_folders(root).fingerprint() != before


def test_prepared_images_are_those_of_the_indices():
    images, preprocessing = array_images(), Preprocessing(8)
    prepared = Prepared(images, preprocessing, np.array([4, 1]))
    assert len(prepared) == 2
    image, label = prepared[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels()[4])
    assert label == 0
    assert prepared[1][1] == 1


def test_the_loader_gives_batches_in_order():
    prepared = Prepared(array_images(), Preprocessing(8))
    batches = list(loader(prepared, 2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 1, 0]


@pytest.mark.parametrize("workers", [0, 1], ids=["this-process", "a-worker"])
def test_images_in_memory_are_all_of_them_in_order(workers):
    images, labels = in_memory(Prepared(array_images(), Preprocessing(8), np.array([0, 2, 4])), workers)
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), pixels()[[0, 2, 4]])
    assert labels.tolist() == [0, 2, 0]


def test_images_of_several_batches_come_whole_into_memory():
    many = ArrayImages(pixels(600), np.arange(600), [str(label) for label in range(600)])
    images, labels = in_memory(Prepared(many, Preprocessing(8)))
    assert labels.tolist() == list(range(600))
    np.testing.assert_array_equal(images[-1].permute(1, 2, 0).numpy(), many.pixels[-1])


@pytest.mark.parametrize("workers", [0, 1], ids=["this-process", "a-worker"])
def test_a_damaged_image_stops_the_loading_with_one_line(write_images, workers):
    root = write_images({"a": 1})
    _junk(root / "a" / "broken.png")
    with pytest.raises(DataError, match=r"cannot decode image .*broken\.png") as error:
        in_memory(Prepared(class_folders(root), Preprocessing(8)), workers)
    one_line(error)
