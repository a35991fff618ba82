"""Delivers payloads: lanes, attempts, verdicts and the retry policy.

`verdicts`, `retry_policy`, `breaker`, `concurrency`, `rate` and `evidence` are pure: time and chance are arguments.
"""
