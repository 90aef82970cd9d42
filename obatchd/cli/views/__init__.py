"""Views that several commands of ``obatchctl`` share."""
