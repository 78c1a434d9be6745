"""Tar shards in WebDataset's form: what they hold, as WebDataset itself reads it, and what is said of damaged ones."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldnq.calibration import draw
from ldnq.config import CalibrationConfig, DataConfig
from ldnq.data import load_data
from ldnq.datasets import datasets, shards
from ldnq.datasets.images import Prepared, in_memory
from ldnq.datasets.shard_files import holds_shards
from ldnq.datasets.shards import ShardImages, load_shards
from ldnq.errors import DataError, UsageError
from ldnq.preprocessing import Preprocessing

webdataset = pytest.importorskip("webdataset")
tariterators = pytest.importorskip("webdataset.tariterators")
FOLDER = datasets.get("folder")


def encoded(number: int, kind: str = "PNG") -> bytes:
    """A small picture, another one for every number."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def write(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of these files in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def sample(number: int, label: int | None, extension: str = "png") -> dict[str, bytes]:
    """An image and, if there is a label, its file."""
    named = {f"{number:04}.cls": str(label).encode()} if label is not None else {}
    return named | {f"{number:04}.{extension}": encoded(number)}


def shard(path: Path, labels, start: int = 0) -> Path:
    """A shard of an image for each of `labels`."""
    return write(path, {name: data for i, label in enumerate(labels, start) for name, data in sample(i, label).items()})


@pytest.fixture
def root(tmp_path):
    """Five images to train on in two shards, three to test on in one."""
    folder = tmp_path / "shards"
    shard(folder / "train-0000.tar", [2, 0, 1])
    shard(folder / "train-0001.tar", [1, 2], start=3)
    shard(folder / "val-0000.tar", [0, 1, 2], start=5)
    return folder


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def pixels(images, index: int) -> np.ndarray:
    return np.array(images.picture(index))


def test_images_and_labels_are_those_that_webdataset_reads(root):
    images = load_shards(root, "train", None)
    decode = webdataset.Decoder([webdataset.imagehandler("rgb8")])
    reference = []
    for path in sorted(root.glob("train-*.tar")):
        with path.open("rb") as stream:
            files = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            reference += map(decode, tariterators.group_by_keys(files))
    assert len(images) == len(reference) == 5
    for index, expected in enumerate(reference):
        np.testing.assert_array_equal(pixels(images, index), expected["png"])
        assert images.labels[index] == expected["cls"]
    assert images.class_names == ("0", "1", "2")


def test_webdataset_writes_what_is_read(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(5):
            writer.write({"__key__": f"a.b/{number:06}", "jpg": encoded(number, "JPEG"), "cls": number % 2, "json": {}})
    images = load_shards(tmp_path, "train", None)
    assert images.labels.tolist() == [0, 1, 0, 1, 0]
    assert [path.name for path in images.shards] == ["train-0000.tar", "train-0001.tar", "train-0002.tar"]
    np.testing.assert_array_equal(pixels(images, 4), np.array(Image.open(io.BytesIO(encoded(4, "JPEG")))))


@pytest.mark.parametrize(
    "names",
    [
        ["train-0.tar", "train-1.tar", "val-0.tar"],
        ["imagenet1k-train-0.tar", "imagenet1k-train-1.tar", "imagenet1k-validation-0.tar"],
        ["train/0.tar", "train/1.tar", "test/0.tar"],
        ["training/0.tar", "training/1.tar", "val/train-images.tar"],
    ],
    ids=["names", "words-in-names", "folders", "a-name-before-its-folder"],
)
def test_names_tell_what_shards_are_for(tmp_path, names):
    counts = [len(shard(tmp_path / name, range(number + 2)).name) and number + 2 for number, name in enumerate(names)]
    assert holds_shards(tmp_path)
    train, test = (load_shards(tmp_path, split, None) for split in ("train", "test"))
    if names[-1].endswith("train-images.tar"):
        assert (len(train), test) == (sum(counts), None)
    else:
        assert (len(train), len(test)) == (counts[0] + counts[1], counts[2])


def test_shards_without_a_word_are_to_train_on(tmp_path):
    shard(tmp_path / "0000.tar", [0, 1])
    assert len(load_shards(tmp_path, "train", None)) == 2
    assert load_shards(tmp_path, "test", None) is None


def test_a_pattern_names_shards_wherever_they_lie(root, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.move(root / "val-0000.tar", tmp_path / "more" / "val-0000.tar")
    pattern = f"{tmp_path}/{{shards/train-{{0000..0001}},more/val-0000}}.tar"
    data = load_data(DataConfig("folder", pattern), FOLDER)
    assert (len(data.train), len(data.test), data.num_classes) == (5, 3, 3)
    assert data.train.fingerprint() == load_shards(root, "train", None).fingerprint()


def test_the_folder_of_a_pattern_tells_what_its_shards_are_for(tmp_path):
    shard(tmp_path / "val" / "0.tar", [0, 1])
    shard(tmp_path / "my_test_images" / "0.tar", [0, 1, 0])
    assert len(load_data(DataConfig("folder", str(tmp_path / "val" / "0.tar")), FOLDER, training=False).test) == 2
    assert len(load_data(DataConfig("folder", str(tmp_path / "my_test_images" / "{0..0}.tar")), FOLDER).train) == 3


def test_one_file_is_a_pattern(root):
    assert len(load_data(DataConfig("folder", str(root / "train-0001.tar")), FOLDER).train) == 2


def test_every_dataset_may_lie_in_shards(tmp_path):
    shard(tmp_path / "train-0.tar", [3, 1])
    shard(tmp_path / "val-0.tar", [0])
    data = load_data(DataConfig("imagenette", str(tmp_path)), datasets.get("imagenette"))
    assert data.class_names == tuple(map(str, range(10)))
    shard(tmp_path / "val-0.tar", [10])
    with pytest.raises(DataError, match=r"expected labels below 10, as many as the dataset has, found 10 in"):
        load_data(DataConfig("imagenette", str(tmp_path)), datasets.get("imagenette"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "ant\nbee\ncat\ndog\n"),
        ("classes.json", '["ant", "bee", "cat", "dog"]'),
        ("classes.json", '{"dog": 3, "ant": 0, "cat": 2, "bee": 1}'),
    ],
    ids=["lines", "list", "numbers-by-name"],
)
def test_classes_are_called_as_a_file_says(root, name, text):
    (root / name).write_text(text)
    for split in ("train", "test"):
        assert load_shards(root, split, None).class_names == ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("text", ["{", "3", '{"ant": 1}', '{"ant": "a", "bee": 0}', "[1, 2]"])
def test_other_classes_are_refused(root, text):
    (root / "classes.json").write_text(text)
    with pytest.raises(DataError, match="expected the names of classes in") as error:
        load_shards(root, "train", None)
    one_line(error)


def test_labels_without_a_name_are_refused(root):
    (root / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"expected labels below 2, as many as .*classes\.txt names, found 2"):
        load_shards(root, "train", None)


def test_images_without_labels_do_for_calibration(tmp_path):
    shard(tmp_path / "train-0.tar", [None, None])
    data = load_data(DataConfig("folder", str(tmp_path)), FOLDER)
    assert (len(data.train), data.train.labelled, data.train.labels.tolist()) == (2, False, [-1, -1])
    shard(tmp_path / "val-0.tar", [None])
    with pytest.raises(DataError, match=r"expected labels \(\.cls\) in the shards to test on"):
        load_data(DataConfig("folder", str(tmp_path)), FOLDER)


def test_notes_and_other_files_are_passed_over(tmp_path):
    files = {"__index__": b"", "README.txt": b"read me", "__meta__/0001.png": b"", **sample(1, 0), "0001.json": b"{}"}
    with tarfile.open(write(tmp_path / "0.tar", files), "a") as archive:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    images = load_shards(tmp_path, "train", None)
    np.testing.assert_array_equal(pixels(images, 0), np.array(Image.open(io.BytesIO(encoded(1)))))
    assert len(images) == 1


def test_names_longer_than_a_header_holds_are_read(tmp_path):
    key = "/".join(["a long name"] * 20)
    images = load_shards(
        write(tmp_path / "0.tar", {f"{key}.png": encoded(7), f"{key}.cls": b"0\n"}).parent, "train", None
    )
    np.testing.assert_array_equal(pixels(images, 0), np.array(Image.open(io.BytesIO(encoded(7)))))


def test_prepared_images_are_the_same_in_other_processes(root):
    prepared = Prepared(load_shards(root, "train", None), Preprocessing(8), np.array([4, 1]))
    images, labels = in_memory(prepared)
    assert labels.tolist() == [2, 0]
    np.testing.assert_array_equal(images.numpy(), in_memory(prepared, workers=1)[0].numpy())
    assert pickle.loads(pickle.dumps(prepared.images)).fingerprint() == prepared.images.fingerprint()


def test_a_calibration_set_is_drawn_without_reading_an_image(root, monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(ShardImages, "picture", refuse)
    images = load_data(DataConfig("folder", str(root)), FOLDER).training
    found = draw(images, "folder", CalibrationConfig(samples=3, stratified=True))
    assert len(found.indices) == 3
    found.check("folder", load_shards(root, "train", None), Path("set.h5"))


def test_an_index_spares_the_headers(root, monkeypatch, tmp_path):
    monkeypatch.setenv("LDNQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards.indexed.__globals__["time"], "time_ns", lambda: 1 << 62)
    monkeypatch.setitem(shards.indexed.__globals__, "FEWEST", 1)
    first = load_shards(root, "train", None)
    read = []
    monkeypatch.setattr(shards, "samples", lambda path: read.append(path.name) or [])
    again = load_shards(root, "train", None)
    assert (read, again.fingerprint()) == ([], first.fingerprint())
    np.testing.assert_array_equal(pixels(again, 3), pixels(first, 3))
    shard(root / "train-0001.tar", [1, 2, 0], start=3)
    with pytest.raises(DataError, match="holds no images"):
        load_shards(root, "train", None)
    assert read


def test_fingerprints_tell_collections_apart_but_not_where_they_lie(root, tmp_path):
    before = load_shards(root, "train", None).fingerprint()
    shutil.copytree(root, tmp_path / "copy")
    assert load_shards(tmp_path / "copy", "train", None).fingerprint() == before
    shard(tmp_path / "copy" / "train-0001.tar", [1, 0], start=3)
    assert load_shards(tmp_path / "copy", "train", None).fingerprint() != before
    write(tmp_path / "copy" / "train-0001.tar", {**sample(3, 1), **sample(9, 2)})
    assert load_shards(tmp_path / "copy", "train", None).fingerprint() != before


@pytest.mark.parametrize("where", ["train/cat/0.png", "cat/0.png", "0.png"])
def test_archives_beside_unpacked_images_are_no_shards(tmp_path, where):
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_bytes(encoded(0))
    if where.startswith("train"):
        write(tmp_path / "ILSVRC2012_img_train.tar", {"n01440764.tar": b""})
    assert not holds_shards(tmp_path)
    assert len(load_data(DataConfig("folder", str(tmp_path)), FOLDER).train) == 1


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _cut_between_files(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4 * 512])


def _spoil_a_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2048 : 2048 + 100] = b"\xff" * 100
    path.write_bytes(content)


def _pack(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    "spoil",
    [_cut, _cut_between_files, _spoil_a_header, _pack, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"junk")],
    ids=["cut", "cut-between-files", "spoilt-header", "compressed", "no-bytes", "junk"],
)
def test_a_damaged_shard_is_named(root, spoil):
    spoil(root / "train-0001.tar")
    with pytest.raises(
        DataError, match=r"cannot read shard .*train-0001\.tar \(.*\): expected an uncompressed tar"
    ) as error:
        load_shards(root, "train", None)
    one_line(error)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"shard .*9\.tar holds no images: fill or remove it"),
        ({"a.txt": b"", "b.tar": b""}, r"shard .*9\.tar holds no images"),
        ({"a.png": b"", "b.png": b"", "a.cls": b"1"}, r"expected the files of a side by side in shard .*9\.tar"),
        (
            {"a.cls": b"1", "b.png": b"", "b.cls": b"1"},
            r"expected an image beside a\.cls in shard .*9\.tar, found none",
        ),
        ({"a.png": b"", "a.cls": b"cat"}, r"number of a class in a\.cls of shard .*9\.tar, found 'cat'"),
        ({"a.png": b"", "a.cls": b"-1"}, r"found '-1'"),
        ({"a.png": b"", "a.cls": b""}, r"found ''"),
        ({"a.png": b"", "a.cls": b"9" * 30}, r"found '999"),
        (
            {"a.png": b"", "a.cls": b"0", "b.png": b""},
            r"a label \(\.cls\) for every image or for none, found 1 without",
        ),
        ({"a.png": b"", "a.PNG": b""}, r"expected every file of shard .*9\.tar once, found a\.PNG twice"),
    ],
    ids=["empty", "no-images", "keys-apart", "no-image", "a-word", "negative", "nothing", "huge", "some", "twice"],
)
def test_a_shard_of_another_form_is_named(root, files, message):
    write(root / "train-0009.tar", files)
    with pytest.raises(DataError, match=message) as error:
        load_shards(root, "train", None)
    one_line(error)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    write(tmp_path / "0.tar", {"a.png": b"junk", "a.cls": b"0"})
    with pytest.raises(DataError, match=r"cannot decode image a\.png of shard .*0\.tar: remove or replace it") as error:
        load_shards(tmp_path, "train", None).picture(0)
    one_line(error)


def test_a_shard_that_vanished_is_named(root):
    images = load_shards(root, "train", None)
    (root / "train-0001.tar").unlink()
    with pytest.raises(DataError, match=r"train-0001\.tar is gone"):
        images.picture(4)


@pytest.mark.parametrize(
    ("pattern", "kind", "message"),
    [
        ("train-{0000..0003}.tar", DataError, r"2 of 4 shards of .* are not there: .*train-0002\.tar"),
        ("train-9.tar", DataError, r"1 of 1 shards of .*train-9\.tar are not there"),
        ("train-{0000..0003.tar", UsageError, "expected braces in pairs"),
    ],
)
def test_patterns_of_shards_that_are_not_there_are_refused(root, pattern, kind, message):
    with pytest.raises(kind, match=message) as error:
        load_data(DataConfig("folder", str(root / pattern)), FOLDER)
    one_line(error)


def test_shards_to_test_on_alone_are_no_training_images(root):
    for path in root.glob("train-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"expected shards to train on in .*, found val-0000\.tar"):
        load_shards(root, "train", None)
    assert len(load_data(DataConfig("folder", str(root)), FOLDER, training=False).test) == 3


def test_a_shard_that_could_be_for_either_is_refused(root):
    shard(root / "more.tar", [0])
    with pytest.raises(DataError, match=r"expected train or val in the name of every shard, .*more\.tar"):
        load_shards(root, "train", None)


def test_without_the_package_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    monkeypatch.setitem(__import__("sys").modules, "webdataset.tariterators", None)
    with pytest.raises(UsageError, match=r"pip install 'ldnq\[webdataset\]'"):
        load_shards(root, "train", None)


def test_numbers_of_classes_fit_json(root):
    (root / "classes.json").write_text(json.dumps(["ä", "b", "c"]), encoding="utf-8")
    assert load_shards(root, "test", None).class_names == ("ä", "b", "c")
