"""Burn-in: a timed load on chosen GPUs that ends in a verdict for each."""
