"""Burn-ins over hosts: each carries out its own part, and the head gathers what they tell."""
