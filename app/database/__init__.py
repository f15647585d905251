"""PostgreSQL: the pool, migration on start, the embedded server."""
