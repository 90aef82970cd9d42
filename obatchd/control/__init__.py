"""The control API over a Unix socket and its client."""
