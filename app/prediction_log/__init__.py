"""Scores to durable rows.

Levels fsync and os: record -> spooled_log -> spool.journal ... spool.reader -> shipper -> inserter -> PostgreSQL.
Level database: record -> committed_log -> inserter -> PostgreSQL. All use partitions and queries.
"""
