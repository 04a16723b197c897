"""A swarm of the real averagers on virtual time: what `python -m scripts.simulate` runs.

scenario.py    what is simulated, and the dice
swarm.py       members that live, average and die
figures.py     what is noted of every round, and the digest of it all
"""
