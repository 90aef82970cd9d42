"""Ollama's own API: the fleet as one Ollama."""
