"""What is read from the source is what is registered."""

from importlib import import_module

import pytest

from ldnq import catalogue
from ldnq.presets import STAGES

REGISTRIES = {kind: f"ldnq.{'quantizers' if kind == 'methods' else kind}" for kind in catalogue.SOURCES}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_it_holds_all_that_is_registered(kind):
    registry = getattr(import_module(REGISTRIES[kind]), kind)
    assert sorted(entry.name for entry in catalogue.entries(kind)) == sorted(registry)


@pytest.mark.parametrize("kind", ["models", "datasets", "presets"])
def test_constants_of_an_entry_are_those_of_what_is_registered(kind):
    registry = getattr(import_module(REGISTRIES[kind]), kind)
    for entry in catalogue.entries(kind):
        found = registry.get(entry.name)
        assert (entry.summary, entry.paper) == (found.summary, getattr(found, "paper", ""))
        known = {name: value for name, value in entry.fields.items() if hasattr(found, name)}
        assert known == {name: getattr(found, name) for name in known}
    if kind == "models":
        assert all({"image_size", "default_dataset"} <= entry.fields.keys() for entry in catalogue.entries(kind))


@pytest.mark.parametrize("kind", ["methods", "solvers", "formats"])
def test_what_a_class_is_said_to_be_begins_its_documentation(kind):
    registry = getattr(import_module(REGISTRIES[kind]), kind)
    for entry in catalogue.entries(kind):
        documentation = " ".join(registry.get(entry.name).__doc__.split())
        assert entry.summary
        assert documentation.startswith(entry.summary)
        assert all(paper in documentation for paper in entry.paper.split(", "))


def test_stages_are_all_there_in_their_order():
    assert [stage.name for stage in catalogue.stages()] == [stage.__module__.rpartition(".")[2] for stage in STAGES]


def test_a_paper_is_the_first_that_is_cited():
    assert catalogue.cited("From the `Deep\n  Nets <https://arxiv.org/pdf/1234.56789.pdf>`_ and `B <b>`_") == (
        "Deep Nets",
        "arXiv 1234.56789",
    )
    assert catalogue.cited("Of nowhere.") == ("", "")
