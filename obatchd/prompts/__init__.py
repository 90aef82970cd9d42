"""What happens to a prompt and its answer: reasoning, structured output."""
