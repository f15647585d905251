"""Scores to durable rows.

record -> spooled_log -> spool.journal ... spool.reader -> shipper -> inserter -> PostgreSQL at the levels fsync and os;
record -> committed_log -> inserter -> PostgreSQL at the level database. partitions and queries stand beside.
"""
