"""What a peer tells about itself while it runs.

status.py    `PeerStatus` and its file: written by the running peer, read by `status`, `doctor`, `demo` and the live table
table.py     the table people look at: one row per peer, the swarm below
replacing.py files that others read while we write them
live.py      keeps that table on a terminal, from status files
"""
