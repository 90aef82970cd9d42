"""Puts the path of a drop together: admission, resumption, housekeeping, erasure."""
