"""The process at one server: its requests to Ollama, and the records of the answers."""
