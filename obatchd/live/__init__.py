"""Jobs in work, and the state that the parts working on them share."""
