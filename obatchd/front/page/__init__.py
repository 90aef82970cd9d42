"""The web page for people: its files, and the sessions in which it asks the API."""
