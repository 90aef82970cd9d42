"""Stand-ins for Ollama servers and GPUs, shared by demo, tests and benchmarks."""
