"""From an answer to the outbox: commits, response files, publication, and jobs that end before all is answered."""
