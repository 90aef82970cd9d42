"""The client of the control API and what both of its ends share. Imports nothing of the daemon."""
