import pytest
import torch

# Networks of a few thousand weights are faster on one thread, and round alike wherever the tests run.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty current folder, away from the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
