"""The client of the control API, and the parts that both ends share. Imports nothing of the daemon."""
