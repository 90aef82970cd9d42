"""Requests to servers: offers, switches between models, outcomes of attempts, the watchdog, and the workers."""
