"""One Ollama per GPU: environment, process, state machine, fleet, models."""
