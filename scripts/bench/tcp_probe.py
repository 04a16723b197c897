"""How fast plain TCP really is over the links of a benchmark: the ceiling of everything that is measured there.

    python -m scripts.bench.tcp_probe listen ADDRESS              takes connections until standard input ends
    python -m scripts.bench.tcp_probe send ADDRESS PORT SECONDS   sends zeros, prints received bytes per second

The receiver counts: it answers every connection's end with the bytes and the time from its first to its last byte.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress

from scripts.bench.netns import Host

PIECE_BYTES = 2**18
SKIP_S = 0.3
"""Left out of the measurement: slow start."""

ANSWER = struct.Struct("<d")
PATIENCE_S = 20.0


def link_rates(hosts: tuple[Host, ...], seconds: float) -> list[float]:
    """Payload bytes per second that one TCP connection carries over each host's link: the slower of its two directions.

    Each host exchanges with the fastest other one, one direction after the other, while nothing else goes on.
    """
    rates = []
    for rank, host in enumerate(hosts):
        others = [other for number, other in enumerate(hosts) if number != rank]
        partner = max(others, key=lambda other: other.mbit or 0.0)
        rates.append(min(_rate(host, partner, seconds), _rate(partner, host, seconds)))
    return rates


def _rate(source: Host, target: Host, seconds: float) -> float:
    listen = subprocess.Popen(_command(target, "listen", target.address), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = listen.stdout.readline().strip() if listen.stdout else ""
        send = _command(source, "send", target.address, port, str(seconds))
        done = subprocess.run(send, check=True, capture_output=True, text=True, timeout=seconds + PATIENCE_S)
        return float(done.stdout)
    finally:
        listen.kill()
        listen.communicate()


def _command(host: Host, *arguments: str) -> list[str]:
    return [*host.prefix, sys.executable, "-m", "scripts.bench.tcp_probe", *arguments]


def listen(address: str) -> None:
    """Serve one connection: count what comes, answer with its rate."""
    with socket.create_server((address, 0)) as server:
        sys.stdout.write(f"{server.getsockname()[1]}\n")
        sys.stdout.flush()
        connection, _ = server.accept()
        with connection:
            connection.sendall(ANSWER.pack(_received_rate(connection)))


def _received_rate(connection: socket.socket) -> float:
    buffer = bytearray(PIECE_BYTES)
    began_s = time.monotonic()
    counted_from_s, counted_bytes, last_s = 0.0, 0, began_s
    while got := connection.recv_into(buffer):
        last_s = time.monotonic()
        if not counted_from_s and last_s - began_s >= SKIP_S:
            counted_from_s = last_s
        elif counted_from_s:
            counted_bytes += got
    return counted_bytes / (last_s - counted_from_s) if counted_from_s and last_s > counted_from_s else 0.0


def send(address: str, port: int, seconds: float) -> float:
    """Send for that long.

    Returns:
        What the other side received, bytes per second.
    """
    zeros = bytes(PIECE_BYTES)
    with socket.create_connection((address, port), timeout=PATIENCE_S) as connection:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            connection.sendall(zeros)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(ANSWER.size, socket.MSG_WAITALL)
    rate: float = ANSWER.unpack(answer)[0]
    return rate


def main(arguments: list[str]) -> int:
    """Entry point of both sides."""
    with suppress(KeyboardInterrupt):
        if arguments[0] == "listen":
            listen(arguments[1])
        else:
            sys.stdout.write(f"{send(arguments[1], int(arguments[2]), float(arguments[3]))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
