"""Calls of OpenAI's API that ask a model and wait for the answer."""
