import h5py
import numpy as np
import pytest

from ldnq import hdf5

VALUES = np.arange(1000, dtype="<i8")


@pytest.fixture
def path(tmp_path):
    with hdf5.created(tmp_path / "sealed.h5") as file:
        file["values"] = VALUES
    return tmp_path / "sealed.h5"


def _read(path, dtype="<i8"):
    with hdf5.opened(path) as file:
        return hdf5.read_flat(file, "values", dtype)


def test_what_was_written_is_read(path):
    assert np.array_equal(_read(path), VALUES)


def test_other_tools_open_a_sealed_file(path):
    with h5py.File(path, "r") as file:
        assert np.array_equal(file["values"][:], VALUES)


def test_a_file_without_a_seal_is_read(tmp_path):
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["values"] = VALUES
    assert np.array_equal(_read(tmp_path / "plain.h5"), VALUES)


def test_any_damage_of_a_sealed_file_is_found_before_it_is_opened(path, monkeypatch):
    whole = path.read_bytes()

    def refuse(*args, **kwargs):
        raise AssertionError("the HDF5 library was given a damaged file")

    monkeypatch.setattr(h5py, "File", refuse)
    end = len(whole) - len(hdf5.SEAL) - 32
    for position in [*range(0, end, 97), end + len(hdf5.SEAL), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="seal"):
            _read(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="seal"):
        _read(path)


def test_a_heap_that_the_library_would_search_for_ever_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    path = tmp_path / "text.h5"
    with h5py.File(path, "w") as file:
        file.attrs["name"] = "text of any length lies in a global heap"
        file["values"] = VALUES
    assert np.array_equal(_read(path), VALUES)
    content = bytearray(path.read_bytes())
    start = content.index(b"GCOL")
    size = int.from_bytes(content[start + 8 : start + 16], "little")
    free = start + 16 + 16 + 40  # behind the heap's own header and the one object, 40 characters
    assert content[free : free + 2] == b"\0\0"
    assert int.from_bytes(content[free + 8 : free + 16], "little") == start + size - free
    content[free + 8 : free + 16] = bytes(8)
    path.write_bytes(content)
    monkeypatch.setattr(h5py, "File", None)
    with pytest.raises(ValueError, match="free space of no size"):
        _read(path)


def _empty_claim(file):
    file.create_dataset("values", (10**14,), "<i8")


def _huge_chunks(file):
    file.create_dataset("values", data=VALUES, maxshape=(None,), chunks=(1 << 27,), compression="gzip")


def _foreign_filter(file):
    file.create_dataset("values", data=VALUES, compression="lzf")


def _second_filter(file):
    file.create_dataset("values", data=VALUES, compression="gzip", shuffle=True)


def _bytes_of_another_file(file):
    file.create_dataset("values", VALUES.shape, "<i8", external=[("/etc/passwd", 0, 8000)])


def _virtual(file):
    layout = h5py.VirtualLayout(VALUES.shape, "<i8")
    layout[:] = h5py.VirtualSource("other.h5", "values", VALUES.shape)
    file.create_virtual_dataset("values", layout)


def _link_to_another_file(file):
    file["values"] = h5py.ExternalLink("other.h5", "values")


def _link_to_itself(file):
    file["values"] = h5py.SoftLink("/values")


def _group(file):
    file.create_group("values")


def _table(file):
    file["values"] = VALUES.reshape(10, 100)


def _floats(file):
    file["values"] = VALUES.astype("f8")


HOSTILE = [
    _empty_claim, _huge_chunks, _foreign_filter, _second_filter, _bytes_of_another_file, _virtual,
    _link_to_another_file, _link_to_itself, _group, _table, _floats,
]  # fmt: skip


@pytest.mark.parametrize("fill", HOSTILE, ids=lambda fill: fill.__name__)
def test_a_dataset_that_is_not_what_it_should_be_is_refused(tmp_path, fill):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = VALUES
    with hdf5.created(tmp_path / "hostile.h5") as file:
        fill(file)
    with pytest.raises(ValueError, match="values"):
        _read(tmp_path / "hostile.h5")


def test_a_deflated_dataset_is_read(tmp_path):
    zeros = np.zeros(10**6, np.uint8)
    with hdf5.created(tmp_path / "deflated.h5") as file:
        file.create_dataset("values", data=zeros, chunks=zeros.shape, compression="gzip", compression_opts=9)
    assert np.array_equal(_read(tmp_path / "deflated.h5", "u1"), zeros)


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path):
    def write():
        with hdf5.created(tmp_path / "half.h5") as file:
            file["values"] = VALUES
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []
