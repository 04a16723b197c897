"""Members that lie, to test defences with: the attacks of the papers on Byzantine training, as objects that replace what a member sends.

Start with `vectors.py`: what an attacker contributes instead of its gradient.
"""
