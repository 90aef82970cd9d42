"""The composition root: builds all parts, connects them, and runs them until a signal says stop."""
