import importlib
import sys

import pytest

from ldnq.errors import UsageError
from ldnq.registry import Registry, import_files, unknown_name


def _fruits(*names):
    fruits = Registry("fruit")
    for name in names:
        fruits.add(name, name.upper())
    return fruits


def test_an_entry_is_found_by_its_name():
    fruits = _fruits("apple", "pear")
    assert fruits.get("pear") == "PEAR"
    assert "apple" in fruits
    assert "grape" not in fruits


def test_names_come_in_the_order_of_their_entry():
    assert list(_fruits("pear", "apple", "fig")) == ["pear", "apple", "fig"]


def test_the_decorator_enters_a_class_and_leaves_it_as_it_is():
    fruits = Registry("fruit")

    @fruits.register("apple")
    class Apple:
        pass

    assert isinstance(Apple, type)
    assert fruits.get("apple") is Apple


def test_a_name_is_given_once():
    fruits = _fruits("apple")
    with pytest.raises(ValueError, match=r"^fruit 'apple' is registered twice$"):
        fruits.add("apple", "other")
    assert fruits.get("apple") == "APPLE"


@pytest.mark.parametrize(
    ("known", "name", "message"),
    [
        (["apple", "pear"], "aple", "unknown fruit 'aple': did you mean apple?"),
        (["resnet18", "resnet20", "pear"], "resnet10", "unknown fruit 'resnet10': did you mean resnet20 or resnet18?"),
        (["apple", "pear"], "zzz", "unknown fruit 'zzz': expected one of apple, pear"),
        ([f"kind{i}" for i in range(13)], "zzz", "unknown fruit 'zzz': see 'ldnq list fruits'"),
    ],
    ids=["one near", "two near", "none near of few", "none near of many"],
)
def test_an_unknown_name_is_answered_with_what_helps(known, name, message):
    with pytest.raises(UsageError) as caught:
        _fruits(*known).get(name)
    assert str(caught.value) == message


def test_at_most_three_names_are_suggested():
    assert unknown_name("fruit", "apple", [f"apple{i}" for i in range(9)]).count(" or ") == 2


@pytest.fixture
def orchard(tmp_path, monkeypatch):
    """A package of two files that enter a fruit each."""
    folder = tmp_path / "orchard_of_tests"
    folder.mkdir()
    (folder / "__init__.py").write_text("fruits = []\n")
    for name in ("apple", "pear"):
        (folder / f"{name}.py").write_text(f"from orchard_of_tests import fruits\nfruits.append({name!r})\n")
    (folder / "notes.txt").write_text("not a module")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("orchard_of_tests")
    for name in [name for name in sys.modules if name.startswith("orchard_of_tests")]:
        del sys.modules[name]


def test_every_file_of_a_package_is_imported(orchard):
    import_files(orchard)
    assert sorted(orchard.fruits) == ["apple", "pear"]


def test_files_are_imported_once(orchard):
    import_files(orchard)
    import_files(orchard)
    assert sorted(orchard.fruits) == ["apple", "pear"]


def test_a_file_that_cannot_be_imported_is_not_passed_over(orchard, tmp_path):
    (tmp_path / "orchard_of_tests" / "worm.py").write_text("raise RuntimeError('worm')\n")
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError, match="worm"):
        import_files(orchard)
