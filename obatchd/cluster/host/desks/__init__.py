"""What the head asks of a host: each class is a desk, whose methods are called over the session."""
