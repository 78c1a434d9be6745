import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty current folder, away from the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
