"""Aggregators: blocks of several senders -> one block. Read `mean.py`."""
