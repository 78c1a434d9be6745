import pytest

from tests import fuzz


@pytest.mark.parametrize("start", [0, 700])
def test_damaged_and_hostile_files_are_read_or_refused(start):
    ends, failures = fuzz.run(count=350, start=start)
    assert failures == []
    assert {name for name, outcome in ends if outcome == "refused"} == {name for name, outcome in ends}
    assert sum(number for (_, outcome), number in ends.items() if outcome == "refused") > 150
