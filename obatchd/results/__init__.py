"""Results as people want them: read from an outbox or any directory of answers, exported, summed up, reviewed."""
