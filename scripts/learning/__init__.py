"""Swarms that really learn, on virtual time: whole nodes on a simulated network, each with a model of its own and real gradients.

Read `swarm.py`, then `learner.py`, the life of one member. For the benchmarks of churn and of bytes.
"""
