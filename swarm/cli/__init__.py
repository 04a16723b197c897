"""`swarm-peer`, the command line: one file per command, put together in `main.py`.

A command parses its arguments and calls the library; what it imports beyond the terminal is imported inside it, so that `--help` is quick.
`common.py` holds what they share: options, the console, and the one place where an error becomes a sentence and an exit code.
"""
