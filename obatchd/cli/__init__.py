"""The commands obatchd and obatchctl."""
