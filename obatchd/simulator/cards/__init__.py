"""The load of stand-in GPUs, and what a stress process finds on them."""
