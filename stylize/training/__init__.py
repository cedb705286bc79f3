"""Making a model: data, checkpoints, monitoring, the trainer."""
