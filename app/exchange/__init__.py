"""Files: import labels into a running server, export labelled rows from PostgreSQL."""
