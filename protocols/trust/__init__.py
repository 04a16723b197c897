"""Verification of averaging: statements, the coin, checks, audits, and what follows from them. Pure; `peers.averaging` drives it.

After BTARD (Gorbunov et al., ICML 2022, Algorithms 1 to 3), joined to fault tolerance and to Moshpit groups.
"""
