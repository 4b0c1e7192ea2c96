"""The guard lets this machine's own servers be reached, and nothing else."""

import socket

import pytest

from tests.network import NetworkRefusedError, is_local


@pytest.mark.parametrize("host", [None, "", "localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", b"127.0.0.1"])
def test_this_machine_is_local(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.com", "localhost.example.com"])
def test_other_machines_are_refused(host):
    assert not is_local(host)
    with pytest.raises(NetworkRefusedError, match="tests may reach this machine only"):
        socket.create_connection((host, 80), timeout=1)
    with socket.socket() as client, pytest.raises(NetworkRefusedError):
        client.connect_ex((host, 80))


def test_loopback_server_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            assert client.getpeername() == server.getsockname()
