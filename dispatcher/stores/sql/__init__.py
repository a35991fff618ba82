"""Webhooks in a database: the store that dispatchers read, and the repository that the console writes with.

SQLite in a file for one process, PostgreSQL for several replicas. All parts connect through `Database`;
`migrate.upgrade` creates the schema.
"""
