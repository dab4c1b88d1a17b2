"""Addresses: who reaches them, and a port that stays ours until its server listens."""

from __future__ import annotations

import ipaddress
import socket

from posttrain.errors import UsageError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The name by which a server that listens on ``host`` is asked, as a URL has it."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT, [HOST]:PORT for IPv6. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def hold_port(host: str, port: int = 0) -> socket.socket:
    """A socket that keeps ``port`` of ``host``, or a free one (0), for a server of ours.

    While it is open, the kernel gives the port to nobody who asks for any, neither to listen nor to
    connect from. A server that binds it by its number with SO_REUSEADDR can, as those of vLLM,
    uvicorn and torch do, in this process or another; a server may take long to come to that. Raises
    UsageError where somebody listens on the port, or ``host`` is not of this machine.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise UsageError(f"port {port} of {host}: {error.strerror}") from error
    return held
