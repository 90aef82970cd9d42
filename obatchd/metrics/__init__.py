"""Numbers of the daemon for Prometheus."""
