"""Questions and commands of operators; implements :mod:`obatchd.control.operations`."""
