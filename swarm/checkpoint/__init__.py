"""Checkpoints: the state of `swarm.optim` on disk (`store`) and as a Hugging Face folder (`export`)."""
