"""The records of a burn-in run, and their file."""
