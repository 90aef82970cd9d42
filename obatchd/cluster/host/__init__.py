"""A host's side: ``obatchd host``, which keeps the servers and GPUs of one machine for a head elsewhere."""
