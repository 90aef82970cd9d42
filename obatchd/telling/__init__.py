"""Who is told of what happens: administrators of alarms, submitters of the end of their jobs."""
