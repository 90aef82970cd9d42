"""Jobs, their requests and results, the store and the queue."""
