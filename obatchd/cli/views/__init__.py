"""What several commands of ``obatchctl`` show."""
