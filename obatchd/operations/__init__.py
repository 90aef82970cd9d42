"""What operators may ask of the daemon; implements :mod:`obatchd.control.operations`."""
