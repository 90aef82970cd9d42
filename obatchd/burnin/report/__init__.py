"""The report of a burn-in run: as JSON, page, text, comparison and bundle for the vendor."""
