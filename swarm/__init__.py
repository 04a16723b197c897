"""Training together: models, data, the collaborative optimizer, the trainer, checkpoints, monitoring and the command line."""
