"""The verdict of a burn-in run: from the records to evidence to judgement."""
