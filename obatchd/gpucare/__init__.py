"""Consequences of the state of the GPUs: quarantine, loans, records of each card, alarms."""
