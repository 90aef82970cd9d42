"""The text of prompts and answers: templates, reasoning, structured output."""
