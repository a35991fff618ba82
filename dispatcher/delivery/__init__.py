"""From a payload to a delivered one, or to the reason why not: lanes, attempts, verdicts, the retry policy.

`verdicts`, `retry_policy`, `breaker`, `concurrency`, `rate` and `evidence` are pure: time and chance are arguments.
"""
