"""A second, independent libp2p implementation (py-libp2p) that looks at one of our nodes from outside.

py-libp2p and hivemind cannot share a process (both register `crypto.pb`), so the probe runs as a process of its own:

    report.py         what is asked and what is answered: plain values and their JSON; imports neither library
    runner.py         starts the probe, feeds it one request, reads one report, never waits longer than it said
    wire.py           the two protobuf messages of hivemind's unary calls, read and written by hand
    libp2p_probe.py   the process itself (`python -m peers.probe.libp2p_probe`): the only file that imports `libp2p`
"""
