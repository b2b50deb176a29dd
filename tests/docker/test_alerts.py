"""Alerts fire when they should and only then, by `promtool test rules`; each is in the runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker/prometheus/rules/funnel.yml"
[GROUP] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Prometheus)"
)

MINUTES = 60
"""One sample a minute; alerts are looked at after the last."""
Series = dict[str, str]


def level(value: float) -> str:
    return f"{value}+0x{MINUTES}"


def rising(by: float) -> str:
    return f"0+{by}x{MINUTES}"


def jump(by: int, minutes: int) -> str:
    """A counter that jumps so many minutes before the end."""
    return f"0+0x{MINUTES - minutes} {by}+0x{minutes - 1}"


def fall(before: float, after: float, minutes: int) -> str:
    """A gauge that changes so many minutes before the end."""
    return f"{before}+0x{MINUTES - minutes} {after}+0x{minutes - 1}"


def scores(good: int, lately: int, minutes: int) -> Series:
    """Accuracy in percent, and what it changes to so many minutes before the end."""
    before = MINUTES - minutes
    correct = f"0+{good}x{before} {good * before + lately}+{lately}x{minutes - 1}"
    return {
        'funnel_scored_total{learner="served"}': rising(100),
        'funnel_correct_total{learner="served"}': correct,
    }


def answers(route: str, **by_code: int) -> Series:
    return {
        f'funnel_http_request_seconds_count{{route="{route}",code="{code[1:]}"}}': rising(n)
        for code, n in by_code.items()
    }


def predictions(**up_to: int) -> Series:
    buckets = {"0.2": up_to["fast"], "0.5": up_to["fair"], "1": up_to["slow"]}
    buckets["+Inf"] = up_to["slow"]
    return {f'funnel_predict_seconds_bucket{{le="{le}"}}': rising(n) for le, n in buckets.items()}


def left_out(nonfinite: str, quarantined: str) -> Series:
    return {
        "funnel_nonfinite_batches_total": nonfinite,
        "funnel_quarantined_batches_total": quarantined,
        "funnel_batches_total": rising(100),
    }


def at_bounds(weight: float, bias: float) -> Series:
    series = {}
    for tensor, share, size in (("weight", weight, 7840), ("bias", bias, 10)):
        labels = f'learner="served",tensor="{tensor}"'
        series[f"funnel_gain_distribution_gcount{{{labels}}}"] = level(size)
        for bound in ("lower", "upper"):
            name = f'funnel_gain_at_bound_ratio{{{labels},bound="{bound}"}}'
            series[name] = level(share / 2)
    return series


def checkpoints(ok: str, failed: str) -> Series:
    return {
        'funnel_checkpoints_total{result="ok"}': ok,
        'funnel_checkpoints_total{result="failed"}': failed,
    }


def column(missing: str, examples: str = "") -> Series:
    return {
        'funnel_missing_values_total{column="age"}': missing,
        'funnel_examples_total{source="http"}': examples or rising(100),
        'funnel_examples_total{source="redis"}': level(0),
    }


def turns(before: int, after: int, minutes: int) -> str:
    """A counter whose rise a minute changes so many minutes before the end."""
    first = MINUTES - minutes
    return f"0+{before}x{first} {before * first + after}+{after}x{minutes - 1}"


def doing(condition: str, for_minutes: int = MINUTES) -> Series:
    before = f"0+0x{MINUTES - for_minutes} " if for_minutes < MINUTES else ""
    now = f"1+0x{for_minutes - 1 if before else MINUTES}"
    return {f'funnel_learning{{condition="{condition}"}}': before + now}


def learning(batches: str, waiting: int) -> Series:
    return {"funnel_batches_total": batches, "funnel_backlog_examples": level(waiting)}


def floors(served: float, majority: float, scored: int = 5_000, accuracy: float = 0.5) -> Series:
    """Log losses, and accuracies of which that of the floor is 0.9."""

    def loss(learner: str) -> str:
        return f'funnel_score{{learner="{learner}",metric="log_loss",window="1000"}}'

    def right(learner: str) -> str:
        return f'funnel_accuracy{{learner="{learner}",window="rolling"}}'

    return {
        loss("served"): level(served), loss("majority"): level(majority),
        loss("adagrad"): level(0.01),
        right("served"): level(accuracy), right("majority"): level(0.9),
        'funnel_scored_total{learner="served"}': level(scored),
        "funnel_balanced_weights": level(0),
    }  # fmt: skip


def balanced(served: float, majority: float) -> Series:
    """Balanced accuracies where the log loss and the accuracy of the floor are better."""

    def score(learner: str) -> str:
        return f'funnel_score{{learner="{learner}",metric="balanced_accuracy",window="1000"}}'

    shown = {score("served"): level(served), score("majority"): level(majority)}
    return floors(0.4, 0.3) | shown | {"funnel_balanced_weights": level(1)}


def number_floors(served: float, mean: float, scored: int = 5_000, metric: str = "mae") -> Series:
    """Errors of a model of numbers and of a floor, and a coverage that no alert is about."""

    def score(learner: str, metric: str) -> str:
        return f'funnel_score{{learner="{learner}",metric="{metric}",window="1000"}}'

    return {
        score("served", metric): level(served), score("mean", metric): level(mean),
        score("adagrad", metric): level(0.01),
        score("served", "coverage"): level(0.9), score("mean", "coverage"): level(0.5),
        'funnel_scored_total{learner="served"}': level(scored),
        "funnel_balanced_weights": level(0),
    }  # fmt: skip


FIRE: list[tuple[str, str, Series]] = [
    ("FunnelDown", "not scraped", {"up": level(0)}),
    ("FunnelRestarting", "every minute", {"process_start_time_seconds": rising(60)}),
    ("FunnelTargetGone", "a standby", {"up": f"1+0x{MINUTES - 10} stale"}),
    ("FunnelNotReady", "starting for long", {"funnel_ready": level(0)}),
    ("FunnelRequestsRefused", "a tenth of learn", answers("/learn", _202=90, _503=10)),
    ("FunnelRequestsRefused", "a full backlog", answers("/learn", _202=90, _429=10)),
    ("FunnelRequestsRefused", "all of predict", answers("/predict", _500=1)),
    ("FunnelHalted", "nobody sends by HTTP", doing("halted", for_minutes=3)),
    ("FunnelPaused", "an operator", {"funnel_paused": level(1)}),
    ("FunnelLogAway", "a full disk", doing("waiting", for_minutes=4)),
    ("FunnelLearnerStalled", "no batch", learning(level(7), 500)),
    ("FunnelLearnerStalled", "no batch", learning(level(7), 500) | doing("learning")),
    ("FunnelPredictorCutOff", "two minutes", {"funnel_snapshot_read_age_seconds": level(120)}),
    ("FunnelLagging", "two minutes", {"funnel_lag_seconds": level(120)}),
    ("FunnelAccuracyDropped", "no recovery", scores(90, 70, minutes=20)),
    ("FunnelBelowFloor", "by log loss", floors(0.4, 0.3, accuracy=0.95)),
    ("FunnelBelowFloor", "by accuracy", floors(0.2, 0.3, accuracy=0.89)),
    ("FunnelBelowFloor", "by balanced accuracy", balanced(0.49, 0.5)),
    ("FunnelBelowFloor", "of numbers", number_floors(4.0, 3.0)),
    ("FunnelBelowFloor", "of quantiles", number_floors(4.0, 3.0, metric="pinball")),
    ("FunnelColumnSilent", "it never lacked one", column(turns(0, 100, minutes=15))),
    ("FunnelColumnSilent", "it often lacked one", column(turns(60, 100, minutes=20))),
    ("FunnelLabelsMissing", "a tenth of before", {"funnel_label_coverage": fall(0.9, 0.09, 20)}),
    ("FunnelCheckpointOld", "six minutes", {"funnel_checkpoint_age_seconds": level(360)}),
    ("FunnelArchiveOld", "an hour", {"funnel_archive_age_seconds": level(3_600)}),
    ("FunnelCheckpointsFailing", "a full disk", checkpoints(level(9), rising(2))),
    ("FunnelDeadEntries", "one", {"funnel_dead_entries_total": jump(1, minutes=10)}),
    ("FunnelEntriesDamaged", "one", {"funnel_damaged_entries_total": level(1)}),
    ("FunnelBatchesLeftOut", "not finite", left_out(rising(2), level(0))),
    ("FunnelBatchesLeftOut", "quarantined", left_out(level(0), rising(5))),
    ("FunnelGainsAtBound", "of the weights", at_bounds(weight=0.3, bias=0)),
    ("FunnelPredictSlow", "a tenth above 0.5 s", predictions(fast=0, fair=90, slow=100)),
]
SILENT: list[tuple[str, str, Series]] = [
    ("FunnelDown", "scraped", {"up": level(1)}),
    ("FunnelRestarting", "once", {"process_start_time_seconds": jump(900, minutes=10)}),
    ("FunnelTargetGone", "scraped", {"up": level(1)}),
    ("FunnelTargetGone", "down, which another alert reports", {"up": level(0)}),
    ("FunnelTargetGone", "a minute", {"up": f"1+0x{MINUTES - 1} stale"}),
    ("FunnelNotReady", "ready", {"funnel_ready": level(1)}),
    ("FunnelNotReady", "a start", {"funnel_ready": f"1+0x{MINUTES - 1} 0"}),
    ("FunnelRequestsRefused", "one of a hundred", answers("/learn", _202=99, _503=1)),
    ("FunnelRequestsRefused", "a sender's faults", answers("/learn", _202=50, _422=50, _503=0)),
    ("FunnelRequestsRefused", "other routes", answers("/checkpoint", _503=1)),
    ("FunnelHalted", "learning", doing("learning")),
    ("FunnelHalted", "a standby", doing("standby")),
    ("FunnelPaused", "learning", {"funnel_paused": level(0)}),
    ("FunnelLogAway", "a restart of the log", doing("waiting", for_minutes=1)),
    ("FunnelLogAway", "learning", doing("learning")),
    ("FunnelLearnerStalled", "busy", learning(rising(100), 500)),
    ("FunnelLearnerStalled", "nothing sent", learning(level(7), 0)),
    ("FunnelLearnerStalled", "a standby", learning(level(7), 500) | doing("standby")),
    ("FunnelLearnerStalled", "a pause", learning(level(7), 500) | {"funnel_paused": level(1)}),
    ("FunnelPredictorCutOff", "read", {"funnel_snapshot_read_age_seconds": level(1)}),
    ("FunnelPredictorCutOff", "a blink", {
        "funnel_snapshot_read_age_seconds": f"1+0x{MINUTES - 1} 90",
    }),
    ("FunnelLagging", "a pause", {"funnel_lag_seconds": level(120), "funnel_paused": level(1)}),
    ("FunnelLagging", "a second", {"funnel_lag_seconds": level(1)}),
    ("FunnelLagging", "a standby", {"funnel_lag_seconds": level(120)} | doing("standby")),
    ("FunnelAccuracyDropped", "five points", scores(90, 85, minutes=20)),
    ("FunnelAccuracyDropped", "better", scores(50, 90, minutes=20)),
    ("FunnelAccuracyDropped", "drift just now", scores(90, 50, minutes=5)),
    ("FunnelAccuracyDropped", "nothing sent", {
        'funnel_scored_total{learner="served"}': level(9),
        'funnel_correct_total{learner="served"}': level(3),
    }),
    ("FunnelBelowFloor", "above, and below a shadow", floors(0.2, 0.3, accuracy=0.95)),
    ("FunnelBelowFloor", "balanced, and right of each class", balanced(0.8, 0.5)),
    ("FunnelBelowFloor", "few examples", floors(0.4, 0.3, scored=999)),
    ("FunnelBelowFloor", "numbers above, and below a shadow", number_floors(2.0, 3.0)),
    ("FunnelBelowFloor", "few numbers", number_floors(4.0, 3.0, scored=999)),
    ("FunnelBelowFloor", "by another score", number_floors(4.0, 3.0, metric="log_score")),
    ("FunnelColumnSilent", "always full", column(level(0))),
    ("FunnelColumnSilent", "always empty", column(rising(100))),
    ("FunnelColumnSilent", "more missing", column(turns(0, 90, minutes=20))),
    ("FunnelColumnSilent", "a minute", column(turns(0, 100, minutes=1))),
    ("FunnelColumnSilent", "nothing sent", column(level(5), level(9))),
    ("FunnelLabelsMissing", "level", {"funnel_label_coverage": level(0.3)}),
    ("FunnelLabelsMissing", "a little lower", {"funnel_label_coverage": fall(0.9, 0.6, 20)}),
    ("FunnelLabelsMissing", "for a minute", {"funnel_label_coverage": fall(0.9, 0.1, 1)}),
    ("FunnelEntriesDamaged", "none", {"funnel_damaged_entries_total": level(0)}),
    ("FunnelCheckpointOld", "half a minute", {"funnel_checkpoint_age_seconds": level(30)}),
    ("FunnelArchiveOld", "ten minutes", {"funnel_archive_age_seconds": level(600)}),
    ("FunnelCheckpointsFailing", "one failed", checkpoints(rising(2), jump(1, minutes=5))),
    ("FunnelCheckpointsFailing", "none asked for", checkpoints(level(9), level(3))),
    ("FunnelDeadEntries", "long ago", {"funnel_dead_entries_total": jump(1, minutes=40)}),
    ("FunnelBatchesLeftOut", "one", left_out(jump(1, minutes=10), level(0))),
    ("FunnelGainsAtBound", "of a bias only", at_bounds(weight=0.05, bias=0.5)),
    ("FunnelPredictSlow", "fast", predictions(fast=100, fair=100, slow=100)),
    ("FunnelPredictSlow", "nothing asked", predictions(fast=0, fair=0, slow=0)),
]  # fmt: skip


def of_a_service(series: str) -> str:
    name, _, labels = series.partition("{")
    return f'{name}{{instance="funnel:8000",job="funnel",{labels or "}"}'


def expect(alert: str, series: Series, fires: bool, directory: Path) -> None:
    """Let promtool check whether an alert fires at the end of the series."""
    inputs = [{"series": of_a_service(name), "values": v} for name, v in series.items()]
    one = [{"labels": "{}", "value": 1}]
    check = {
        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
        "eval_time": f"{MINUTES}m",
        "exp_samples": one if fires else [],
    }
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": [check]}
    suite = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    (directory / "suite.yml").write_text(yaml.safe_dump(suite))
    ran = subprocess.run(
        ["promtool", "test", "rules", directory / "suite.yml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
@pytest.mark.parametrize(("alert", "when", "series"), FIRE)
def test_an_alert_fires(alert: str, when: str, series: Series, tmp_path: Path) -> None:
    expect(alert, series, True, tmp_path)


@needs_promtool
@pytest.mark.parametrize(("alert", "when", "series"), SILENT)
def test_an_alert_is_silent(alert: str, when: str, series: Series, tmp_path: Path) -> None:
    expect(alert, series, False, tmp_path)


def test_every_alert_is_tested_both_ways() -> None:
    assert {alert for alert, *_ in FIRE} == {alert for alert, *_ in SILENT} == set(ALERTS)


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert "$labels.instance" in rule["annotations"]["summary"], name


def test_every_alert_is_in_the_runbook() -> None:
    runbook = (ROOT / "docker/prometheus/runbook.md").read_text()
    entries = re.findall(r"^## (\w+)$", runbook, re.MULTILINE)
    assert entries == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docker/prometheus/runbook.md#{name.lower()}"


@needs_promtool
def test_promtool_finds_no_fault_in_the_rules() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
