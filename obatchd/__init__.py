"""obatchd keeps one Ollama server on every GPU and answers every dropped prompt exactly once."""

from __future__ import annotations

__version__ = "0.2.0"
