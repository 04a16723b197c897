"""The demonstration behind `make demo`: some peers on this machine train one model, lose a member and gain one, and ban those that attack.

plan.py        what to do next, decided from what is seen: pure
processes.py   the peers as processes of their own, each with its log; whatever was started is ended
show.py        the main path: start, watch, kill, join, stop, compare, export, sample
report.py      what it found out, and whether that is what was promised
"""
