"""Training: data, checkpoints, monitoring, the trainer."""
