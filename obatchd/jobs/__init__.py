"""What is to be done: jobs, their requests and results, the store and the queue."""
