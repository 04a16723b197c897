"""Benchmarks: each prints a table for people on standard error and one JSON object as the last line of standard output.

    python -m scripts.bench.averaging     one averaging round, ours beside hivemind and gloo

Read `averaging` (what is measured, the protocol with the workers), `fleet` (the processes of one system), `worker` (their side),
then one `averaging_<system>` per system.
"""
