"""Workers that seem to be far away."""
