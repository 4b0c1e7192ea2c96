"""The local Hub, and processes that know no other."""

import pytest

from tests.hub.client import Client, client_environment
from tests.hub.server import LocalHub


@pytest.fixture(scope="session")
def running_hub():
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub):
    """The server, without faults; repositories stay, so that each test names its own."""
    running_hub.faults.clear()
    running_hub.requests.clear()
    yield running_hub
    running_hub.faults.clear()


@pytest.fixture(scope="module")
def client(running_hub, tmp_path_factory):
    """A process per test module: without a token, and with a cache that is empty at first."""
    folder = tmp_path_factory.mktemp("client")
    with Client(client_environment(running_hub.endpoint, folder / "home"), folder / "log") as client:
        yield client
