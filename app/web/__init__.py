"""What every handler shares: bodies, queries, request ids, problems, static files."""
