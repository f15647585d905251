"""Rows on local disk until PostgreSQL has them. This room does not use the database."""
