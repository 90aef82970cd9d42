"""Every setting: one module for each table, how a file is read, and the settings as text."""
