"""Scores to durable rows.

record -> log -> journal (segment, flush) -> reader -> shipper -> inserter -> PostgreSQL at the levels fsync and os;
record -> log -> committer -> inserter -> PostgreSQL at the level database. partitions and queries stand beside.
"""
