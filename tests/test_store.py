"""What a store holds comes back as it was, from memory and from files, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch

from ldnq.errors import DataError
from ldnq.store import Store


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def files(folder) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*.pt")]


@pytest.mark.parametrize("limit", [float("inf"), 0], ids=["in memory", "in files"])
def test_values_come_back_with_their_memory_format(folder, limit):
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    found = Store(limit).hold({"image": image, "half": image.bfloat16(), "size": 3, "shape": (4, 5)}).values()
    assert list(found) == ["image", "half", "size", "shape"]
    assert torch.equal(found["image"], image)
    assert found["image"].stride() == image.stride()
    assert found["half"].dtype == torch.bfloat16
    assert (found["size"], found["shape"]) == (3, (4, 5))


def test_only_what_memory_has_no_room_for_is_in_files(folder):
    store = Store(limit=1000)
    first, second = (store.hold({"x": torch.ones(100)}) for _ in range(2))
    assert not files(folder)
    assert store.bytes_in_memory == 800
    third = store.hold({"x": torch.full((100,), 3.0)})
    assert len(files(folder)) == 1
    assert store.bytes_in_memory == 800
    first.free()
    fourth = store.hold({"x": torch.ones(150)})
    assert len(files(folder)) == 1
    assert store.bytes_in_memory == 1000
    assert float(third.values()["x"].sum()) == 300
    for held in (second, third, fourth):
        held.free()
    assert not files(folder)
    assert store.bytes_in_memory == 0


def test_nothing_is_left_behind(folder):
    store = Store(limit=0)
    store.hold({"x": torch.ones(10)})
    assert files(folder)
    del store
    assert not list(folder.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(folder, monkeypatch):
    store = Store(limit=0)
    monkeypatch.setattr(store, "new_path", lambda: Path("/dev/full"))
    with pytest.raises(DataError, match=r"cannot keep values .* in /dev \(.*\): make room there") as error:
        store.hold({"x": torch.ones(1000)})
    assert "\n" not in str(error.value)
