"""Files in, files out: layout, inbox, claim, outbox."""
