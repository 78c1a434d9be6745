"""What a store holds comes back as it was, from memory and from its file, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch

from ldnq.errors import DataError
from ldnq.store import Store


@pytest.mark.parametrize("limit", [float("inf"), 0], ids=["in memory", "in a file"])
def test_values_come_back_with_their_memory_format(limit):
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    given = {"image": image, "part": image[:, :2], "half": image.bfloat16(), "size": 3, "shape": (4, 5)}
    found = Store(limit).hold(given).values()
    assert list(found) == list(given)
    for name in ("image", "part", "half"):
        assert torch.equal(found[name], given[name])
        assert found[name].dtype == given[name].dtype
    assert found["image"].stride() == image.stride()
    assert (found["size"], found["shape"]) == (3, (4, 5))


def test_only_what_memory_has_no_room_for_is_in_the_file():
    store = Store(limit=1000)
    first, second = (store.hold({"x": torch.ones(100)}) for _ in range(2))
    assert (store.bytes_in_memory, store.bytes_in_file) == (800, 0)
    third = store.hold({"x": torch.full((100,), 3.0)})
    assert store.bytes_in_memory == 800
    assert store.bytes_in_file > 400
    first.free()
    fourth = store.hold({"x": torch.ones(150)})
    assert store.bytes_in_memory == 1000
    assert float(third.values()["x"].sum()) == 300
    for held in (second, third, fourth):
        held.free()
    assert (store.bytes_in_memory, store.bytes_in_file) == (0, 0)


def test_what_was_freed_is_written_over_and_nothing_else_is():
    store, generator = Store(limit=0), torch.Generator().manual_seed(0)
    held, sizes = {}, torch.randint(1, 5000, (150,), generator=generator).tolist()
    for number, size in enumerate(sizes):
        while len(held) > 20:
            stale = list(held)[int(torch.randint(0, len(held), (1,), generator=generator))]
            held.pop(stale)[0].free()
        held[number] = store.hold({"x": torch.full((size,), float(number))}), size
        for key, (values, length) in held.items():
            assert torch.equal(values.values()["x"], torch.full((length,), float(key)))
    # All in all much more was written.
    assert store._end < 4 * sum(sizes) / 2


def test_the_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = Store(limit=0).hold({"x": torch.ones(10)})
    assert not list(tmp_path.iterdir())
    assert torch.equal(held.values()["x"], torch.ones(10))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(DataError, match=r"cannot keep values .* \(No space left on device\): make room") as error:
        Store(limit=0).hold({"x": torch.ones(1000)})
    assert "\n" not in str(error.value)
