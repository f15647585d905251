"""Rows on local disk until PostgreSQL has them; knows no database."""
