"""Sources that a request names, fetched and put in front of its prompt; in processes of their own."""
