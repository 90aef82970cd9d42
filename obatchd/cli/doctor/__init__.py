"""``obatchctl doctor``: what is wrong on this host."""
