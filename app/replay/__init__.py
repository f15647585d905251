"""Recorded rows through a running server, with their labels later: once, or as a demo without an end."""
