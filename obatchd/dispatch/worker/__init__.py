"""The process at one server: what it asks and what it makes of the answers."""
