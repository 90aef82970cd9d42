"""Requests of people who wait for the answer: in memory only, in front of all batches, and never in the store."""
