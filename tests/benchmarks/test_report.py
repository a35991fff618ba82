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


def test_a_reference_that_was_not_measured_is_named() -> None:
    result = json.loads(RESULTS.read_text())
    result["ratios"].pop("end_to_end_vs_bento", None)
    del result["ratios"]["end_to_end_vs_go_program"]
    text = report.markdown(result)
    assert "| events a second, against Bento with the same mapping | not measured | ≥ 2 | – |" in text
    assert "| events a second, against Go" not in text
    assert "| events a second, against a Go program of nearly the same job | not measured | ≥ 1.15 | – |" in text
    assert "against Bento with the same mapping" in report.table(result)
    result["ratios"]["end_to_end_vs_bento"] = 1.5
    assert "| events a second, against Bento with the same mapping | 1.50 | ≥ 2 | **no** |" in report.markdown(result)


def test_each_form_is_in_the_report_with_its_rates_and_its_share_of_the_core() -> None:
    result = {
        "form": {"name": "compiled, Python 3.14.1"},
        "interpreters": {"interpreted, Python 3.11.7": "-O3"},
        "rates": {
            "dispatcher": {"per_second": 26_000, "core_used": 1.0, "discarded": 1},
            "dispatcher, 200 tenants": {"per_second": 24_000, "core_used": 0.97, "discarded": 0},
            "dispatcher, history": {"per_second": 20_000, "core_used": 1.0, "discarded": 2},
            "dispatcher, interpreted, Python 3.11.7": {"per_second": 13_000, "core_used": 0.9},
            "dispatcher, interpreted, Python 3.11.7, 200 tenants": {"per_second": 12_000, "core_used": 1.0},
            "plain pipeline": {"per_second": 6_000, "core_used": 1.0, "discarded": 0},
        },
    }
    assert report.forms(result).splitlines() == [
        "| events a second, and the share of the core that the program used | one tenant | 200 tenants |",
        "|---|---|---|",
        "| dispatcher, compiled, Python 3.14.1 | 26,000, 100% | 24,000, 97% |",
        "| dispatcher, interpreted, Python 3.11.7 | 13,000, 90% | 12,000, 100% |",
        "| plain aiokafka + aiohttp consumer | 6,000, 100% | not measured |",
        "| Go program | not measured | not measured |",
        "| Benthos with the same mapping | not measured | not measured |",
        "",
        "Discarded and measured again, because other processes took a part of the core: 3 runs.",
    ]


def test_the_report_of_a_result_without_forms_has_the_dispatchers_own_rate() -> None:
    result = {"rates": {"dispatcher": {"per_second": 26_000, "core_used": 1.0}}}
    assert "| dispatcher | 26,000, 100% | not measured |" in report.forms(result)
