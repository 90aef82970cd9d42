"""What doors to other hosts have in common: how many come in, who is sent away, and wrong secrets."""
