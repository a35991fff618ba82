"""The README's figures on speed are those that `make bench` has written."""

import json

from benchmarks import report
from benchmarks.__main__ import README, RESULTS


def test_the_readmes_table_is_that_of_the_latest_result() -> None:
    readme = README.read_text()
    assert report.put_into(readme, json.loads(RESULTS.read_text())) == readme


def test_the_report_names_a_missed_goal() -> None:
    result = json.loads(RESULTS.read_text())
    result["ratios"]["tenants_10000_vs_1"] = 0.5
    missed = next(goal for goal in report.goals(result) if goal[0].startswith("10,000"))
    assert missed[1:] == ("0.50", "≥ 0.93", False)
    assert "| **no** |" in report.markdown(result)
    result["ratios"]["tenants_10000_vs_1"] = 0.93
    assert next(goal for goal in report.goals(result) if goal[0].startswith("10,000"))[3]


def test_every_ratio_that_is_promised_is_there() -> None:
    result = json.loads(RESULTS.read_text())
    assert {
        "end_to_end_vs_bare_client",
        "end_to_end_vs_plain_pipeline",
        "tenants_10000_vs_1",
        "healthy_throughput_with_bad_tenants",
        "healthy_p99_with_bad_tenants",
    } <= result["ratios"].keys()
    assert {"half_load_p99_ms", "rss_mb_at_20000_in_flight", "cold_start_s"} <= result.keys()


def test_the_slowest_search_is_held_against_its_goal() -> None:
    result = json.loads(RESULTS.read_text())
    result["history"] = {"postgresql": {"searched_entries": 10_000_000, "slowest_search_ms": 201.5}}
    found = next(goal for goal in report.goals(result) if "history entries" in goal[0])
    assert found == ("slowest search in 10,000,000 history entries of PostgreSQL", "201.5 ms", "≤ 200 ms", False)
    result["history"]["postgresql"]["slowest_search_ms"] = 12.0
    assert next(goal for goal in report.goals(result) if "history entries" in goal[0])[3]
