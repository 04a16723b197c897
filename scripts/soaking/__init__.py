"""The soak test, `scripts/soak.py`: `swarm` runs the members and what befalls them, `verdict` judges, `plot` draws."""
