"""Addresses: who reaches them, and a port that stays ours until its server listens."""

import socket
import struct

import pytest

from posttrain.addresses import hold_port, is_loopback, reachable, split_address
from posttrain.errors import UsageError

IP_LOCAL_PORT_RANGE = 51  # Linux 6.3: of one socket


def only_from(port):
    """A socket that the kernel may give one port alone."""
    found = socket.socket()
    try:
        found.setsockopt(socket.SOL_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
    except OSError:
        pytest.skip("this kernel can't limit a socket's ports (Linux before 6.3)")
    return found


def test_only_this_machine_reaches_loopback():
    assert [is_loopback(h) for h in ("127.0.0.1", "127.8.0.2", "::1", "localhost")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "node7")] == [False] * 4


def test_a_url_names_a_host_that_can_be_asked():
    assert reachable("10.0.0.1") == "10.0.0.1" and reachable("::1") == "[::1]"
    assert reachable("0.0.0.0") == reachable("::") == socket.gethostname()


def test_an_address_is_a_host_and_a_port():
    assert split_address("node7:80") == ("node7", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    with pytest.raises(ValueError, match="'80' is not HOST:PORT"):
        split_address("80")


@pytest.mark.parametrize("listens", [False, True], ids=["connects", "listens"])
def test_a_held_port_is_given_to_nobody_who_asks_for_any(listens):
    with hold_port("127.0.0.1") as held, socket.create_server(("127.0.0.1", 0)) as there:
        port = held.getsockname()[1]
        with only_from(port) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(listens))
            ask = other.bind if listens else other.connect
            with pytest.raises(OSError, match="in use|assign"):
                ask(("127.0.0.1", 0) if listens else there.getsockname())
        held.close()
        with only_from(port) as other:  # the check itself: now it can have it
            other.connect(there.getsockname())
            assert other.getsockname()[1] == port


def test_a_held_port_is_its_servers_when_it_comes():
    with hold_port("127.0.0.1") as held:
        address = held.getsockname()
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(address)
        with socket.create_server(address) as server:  # with SO_REUSEADDR
            socket.create_connection(address, timeout=5).close()
            server.accept()[0].close()
            with pytest.raises(UsageError, match=f"port {address[1]} of 127.0.0.1: .* in use"):
                hold_port(*address)
        hold_port(*address).close()  # again, for the server's next life


def test_an_address_of_another_machine_is_bad_input():
    with pytest.raises(UsageError, match=r"port 0 of 192\.0\.2\.1: Cannot assign"):
        hold_port("192.0.2.1")
