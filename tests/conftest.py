from urllib.request import install_opener

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


@pytest.fixture
def offline(monkeypatch):
    """A machine without a network: nothing listens at the address of its proxy, wherever the tests run."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # The proxies of a process are those of its first download, unless that one is forgotten.
    install_opener(None)
    yield
    install_opener(None)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Indices of images are kept with the files of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
