"""Backups of a spool, and restoring them."""
