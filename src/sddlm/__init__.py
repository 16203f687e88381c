"""Uniform-state diffusion language models: train, sample, evaluate, and believe the result."""
