"""Training: options, loop, records, checkpoints."""
