"""Fuzzing of everything that reads bytes from others. Read `target.py` (what is checked), `targets/` (of what), then `worker.py`."""
