"""Two hosts with a NAT router between them, made of network namespaces that vanish with this process.

    python -m tests.helpers.nat_scene PORT...        (run by `tests.helpers.nat`, inside `unshare`)

    outside 198.51.100.2 --- 198.51.100.1 router 192.168.77.1 --- 192.168.77.2 inside

The inside can open TCP connections to the given ports of the outside and nothing else; the router puts its own address on them. Nothing
from outside gets in unasked. Orders come as JSON lines on standard input, one answer each:

    {"run": [...], "on": "inside", "log": "path"}    starts a program there        -> {"pid": n}
    {"kill": pid}                                    ends it at once                -> {"killed": pid}
    {"counters": true}                               packets seen by the router    -> {"let_through": n, "dropped": n}

At the end of the input every program is asked to stop, and killed if it does not.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

OUTSIDE, INSIDE = "198.51.100.2", "192.168.77.2"
STOP_WITHIN_S = 15.0

_NETWORK = """
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip link set lo up
ip netns add outside
ip netns add inside
ip link add wan type veth peer name eth0 netns outside
ip link add lan type veth peer name eth0 netns inside
ip address add 198.51.100.1/24 dev wan
ip address add 192.168.77.1/24 dev lan
ip link set wan up
ip link set lan up
ip -n outside address add 198.51.100.2/24 dev eth0
ip -n inside address add 192.168.77.2/24 dev eth0
ip -n outside link set lo up
ip -n outside link set eth0 up
ip -n inside link set lo up
ip -n inside link set eth0 up
ip -n inside route add default via 192.168.77.1
"""

_RULES = """
table ip nat {
    chain outgoing {
        type nat hook postrouting priority 100
        oifname "wan" masquerade
    }
}
table ip filter {
    chain forward {
        type filter hook forward priority 0; policy drop
        ct state established,related accept
        iifname "lan" oifname "wan" tcp dport { PORTS } counter accept comment "let_through"
        counter comment "dropped"
    }
}
"""


def main() -> int:
    """Entry point."""
    for step in _NETWORK.strip().splitlines():
        subprocess.run(step.split(), check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    subprocess.run(["nft", "-f", "-"], input=_RULES.replace("PORTS", ", ".join(sys.argv[1:])), text=True, check=True)
    running: list[subprocess.Popen[bytes]] = []
    _answer({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        if "run" in order:
            with open(order["log"], "ab") as log:
                command = ["ip", "netns", "exec", order["on"], *order["run"]]
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))
            _answer({"pid": running[-1].pid})
        elif "kill" in order:
            next(process for process in running if process.pid == order["kill"]).kill()
            _answer({"killed": order["kill"]})
        else:
            _answer(_counters())
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return 0


def _answer(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _counters() -> dict[str, object]:
    rules = subprocess.run(["nft", "list", "table", "ip", "filter"], capture_output=True, text=True, check=True).stdout
    return {name: int(packets) for packets, name in re.findall(r'counter packets (\d+).*comment "(\w+)"', rules)}


if __name__ == "__main__":
    sys.exit(main())
