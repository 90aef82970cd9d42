"""Jobs in work, and what the parts that work on them share."""
