"""The one client of Ollama: its API, connections, and what every error means."""
