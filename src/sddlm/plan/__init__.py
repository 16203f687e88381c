"""How long, how many GPUs, does it fit: before anything is spent."""
