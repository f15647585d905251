"""Scores to durable rows: records, batches into PostgreSQL, partitions, and reading them back."""
