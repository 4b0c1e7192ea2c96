"""No test may reach the network: connections that leave this machine are refused with an error."""

import ipaddress
import socket


class NetworkRefusedError(RuntimeError):
    """A test tried to leave this machine; not an OSError, so that no library takes it for a passing failure."""


def is_local(host: object) -> bool:
    """Whether `host`, a name or an address as the socket functions take it, is this machine."""
    if host is None or host in ("", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(host: object) -> None:
    raise NetworkRefusedError(
        f"a test tried to reach {host!r}; tests may reach this machine only. "
        "Use a local path, data that ships with the package, or a server on 127.0.0.1."
    )


def refuse_network() -> None:
    """Guard the socket functions of this process, for as long as it lives."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded(original):
        def call(self, address):
            if isinstance(address, tuple) and not is_local(address[0]):  # a Unix socket's address is a string
                _refuse(address[0])
            return original(self, address)

        return call

    def guarded_getaddrinfo(host, *args, **kwargs):
        if not is_local(host):
            _refuse(host)
        return getaddrinfo(host, *args, **kwargs)

    socket.socket.connect = guarded(connect)
    socket.socket.connect_ex = guarded(connect_ex)
    socket.getaddrinfo = guarded_getaddrinfo
