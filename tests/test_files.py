import json

import pytest

from ldnq.files import replacing, write_json, write_text


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _fail_half_way(path, error):
    with replacing(path) as temporary:
        temporary.write_text("ne")
        raise error


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt], ids=lambda error: error.__name__)
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(error):
        _fail_half_way(path, error)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["notes.txt"]


def test_a_first_write_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError):
        _fail_half_way(tmp_path / "notes.txt", RuntimeError)
    assert _names(tmp_path) == []


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "notes.txt", "new")
    assert (tmp_path / "a" / "b" / "notes.txt").read_text() == "new"


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "notes.txt", "±α")
    assert (tmp_path / "notes.txt").read_bytes() == "±α".encode()


def test_json_is_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "values.json", {"kbits": 3, "skip": ["fc"]})
    text = (tmp_path / "values.json").read_text()
    assert text == '{\n  "kbits": 3,\n  "skip": [\n    "fc"\n  ]\n}\n'
    assert json.loads(text) == {"kbits": 3, "skip": ["fc"]}


def test_values_that_are_not_json_leave_the_old_file(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {"values": {1, 2}})
    assert json.loads(path.read_text()) == [1]
    assert _names(tmp_path) == ["values.json"]
