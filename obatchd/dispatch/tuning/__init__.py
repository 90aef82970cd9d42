"""How many requests each server works on at a time: found by measuring batch work (docs/internals/servers.md)."""
