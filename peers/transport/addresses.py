"""Reading "host:port". Nothing else is ever passed to gRPC, whose targets may also name files and resolvers."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65535


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" or "[IPv6]:port".

    Returns:
        (host, with the brackets of IPv6; port from 0 to 65535).

    Raises:
        ValueError: it is neither.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise ValueError(f"{address[:100]!r} is not host:port")
    return match["host"], int(match["port"])


def join_address(host: str, port: int) -> str:
    """The reverse; adds the brackets that a bare IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
