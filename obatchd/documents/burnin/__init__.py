"""Burn-in runs; docs/burnin.md describes the report for its readers."""
