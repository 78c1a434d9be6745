"""Large collections are listed once: by one process, for all later ones, until something changes."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ldnq.datasets import index as indices
from ldnq.datasets import listing
from ldnq.datasets.index import Index, indexed, stamp
from ldnq.datasets.listing import class_folders, listed
from ldnq.datasets.names import Names


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A cache of its own, for collections of any size; its index files."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LDNQ_CACHE", str(folder))
    monkeypatch.setattr(indices, "FEWEST", 1)
    return lambda: sorted(path.name for path in folder.iterdir())


def settled(root: Path) -> Path:
    """`root`, as it is when nothing in it has changed for an hour."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (time.time() - 3600,) * 2)
    return root


@pytest.fixture
def scans(monkeypatch):
    """The folders whose entries are read."""
    found, scandir = [], os.scandir
    monkeypatch.setattr(listing.os, "scandir", lambda path: found.append(str(path)) or scandir(path))
    return found


def test_a_folder_is_listed_once(write_images, kept, scans):
    root = settled(write_images({"cat": 2, "dog": 1, "dog/far": 1, "ant": 1}))
    first = class_folders(root)
    assert scans
    scans.clear()
    again = class_folders(root)
    assert not scans
    assert (
        list(again.paths) == list(first.paths) == ["ant/0.png", "cat/0.png", "cat/1.png", "dog/0.png", "dog/far/0.png"]
    )
    assert again.labels.tolist() == [0, 1, 1, 2, 2]
    assert again.class_names == ("ant", "cat", "dog")
    assert again.fingerprint() == first.fingerprint()
    assert again.picture(4).tobytes() == first.picture(4).tobytes()
    assert len(kept()) == 1


def test_a_flat_folder_is_listed_once(write_images, kept, scans):
    root = settled(write_images({".": 3}))
    assert list(listed(root).paths) == ["0.png", "1.png", "2.png"]
    scans.clear()
    again = listed(root)
    assert not scans
    assert (list(again.paths), again.class_names, again.labels.tolist()) == (["0.png", "1.png", "2.png"], (), [-1] * 3)


def _changes():
    return {
        "an-image-more": lambda root: (root / "b/far/new.png").write_bytes((root / "a/0.png").read_bytes()),
        "one-less": lambda root: (root / "a/1.png").unlink(),
        "another-name": lambda root: (root / "a/1.png").rename(root / "a/2.png"),
        "a-class-more": lambda root: (root / "b/far").rename(root / "c"),
        "a-folder-gone": lambda root: [(root / "b/far/0.png").unlink(), (root / "b/far").rmdir()],
    }


@pytest.mark.parametrize("change", _changes().values(), ids=_changes())
def test_a_change_is_noticed(write_images, kept, change):
    root = settled(write_images({"a": 2, "b": 1, "b/far": 1}))
    before = list(class_folders(root).paths)
    change(root)
    expected = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    assert list(class_folders(root).paths) == expected != before


def test_what_has_just_changed_is_not_kept(write_images, kept):
    root = write_images({"a": 2})
    class_folders(root)
    assert kept() == []


def test_small_folders_are_not_kept(write_images, kept, monkeypatch):
    monkeypatch.setattr(indices, "FEWEST", 4)
    class_folders(settled(write_images({"a": 3})))
    assert kept() == []


@pytest.mark.parametrize("size", [0, -9], ids=["empty", "cut-off"])
def test_a_damaged_index_is_made_anew(write_images, kept, tmp_path, size):
    root = settled(write_images({"a": 2}))
    class_folders(root)
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert len(class_folders(root)) == 2
    assert path.stat().st_size == len(whole)


def test_without_a_place_for_it_folders_are_listed_every_time(write_images, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDNQ_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(indices, "FEWEST", 1)
    assert len(class_folders(settled(write_images({"a": 2})))) == 2


def test_of_several_that_start_together_one_lists(kept, tmp_path):
    (tmp_path / "images").mkdir()
    root, found = settled(tmp_path / "images"), []

    def find() -> Index:
        found.append(1)
        time.sleep(0.3)
        return Index({}, {"labels": np.arange(3)}, {"": stamp(root)})

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(indexed, "key", root, find) for _ in range(3)]
    assert [result.result().arrays["labels"].tolist() for result in results] == [[0, 1, 2]] * 3
    assert found == [1]


def test_the_folder_of_caches_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("LDNQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert indices.cache_folder() == tmp_path / "ldnq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert indices.cache_folder() == tmp_path / "home" / ".cache" / "ldnq"


def test_names_and_arrays_come_back_as_they_were(kept, tmp_path):
    names = ["", "cat/1.png", "大きさ\n🐈.png", os.fsdecode(b"caf\xe9.png")]
    root = tmp_path / "images"
    root.mkdir()
    arrays, stamps = {"labels": np.array([-1, 2**40])}, {"": stamp(settled(root))}
    made = Index({"paths": Names.of(names), "none": Names.of([])}, arrays, stamps)
    indexed("key", root, lambda: made)
    found = indexed("key", root, lambda: pytest.fail("was kept"))
    assert list(found.names["paths"]) == names
    assert list(found.names["none"]) == []
    assert found.arrays["labels"].tolist() == [-1, 2**40]
    assert [names[3], names[1]] == [found.names["paths"][index] for index in (3, 1)]
