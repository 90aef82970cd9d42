"""A burn-in run in the daemon, from the plan to the end of the load."""
