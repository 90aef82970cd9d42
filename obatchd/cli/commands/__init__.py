"""One module for each family of ``obatchctl`` commands."""
