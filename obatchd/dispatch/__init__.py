"""Requests to servers: worker pool, protocol, client, faults."""
