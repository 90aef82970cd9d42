"""The head's side: the door, the hosts that came through it, and their servers as if they were local."""
