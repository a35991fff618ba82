"""Delivers payloads: lanes, attempts, verdicts and the retry policy.

`verdicts`, `retry_policy`, `breaker`, `concurrency`, `rate` and `endpoint_health` are pure: time and chance
are arguments.
"""
