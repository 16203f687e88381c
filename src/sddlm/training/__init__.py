"""Training: the loop, its processes, optimisers, checkpoints and records."""
