"""What people look at again and again: all at a glance, answers a part at a time, and what was."""
