"""Kafka: reading events, keeping offsets, retry tiers, dead letters. The only package that knows the client library."""
