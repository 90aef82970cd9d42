"""Batches of programs: what was asked for, what becomes of it, and how programs see it."""
