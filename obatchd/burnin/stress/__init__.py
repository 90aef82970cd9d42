"""Loads for a whole card: checked matrix products, memory patterns, links."""
