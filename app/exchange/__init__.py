"""Files in and out: labels into a running server, labelled rows out of PostgreSQL."""
