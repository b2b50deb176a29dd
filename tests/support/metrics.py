"""The names and labels that the service must export, and a reader of scrapes."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

CONTRACT = {
    "funnel_examples_total": {"source"},
    "funnel_correct_total": {"learner"},
    "funnel_scored_total": {"learner"},
    "funnel_batches_total": set(),
    "funnel_rejected_total": {"code"},
    "funnel_checkpoints_total": {"result"},
    "funnel_nonfinite_batches_total": set(),
    "funnel_quarantined_batches_total": set(),
    "funnel_dead_entries_total": set(),
    "funnel_drift_events_total": {"detector", "direction"},
    "funnel_webhook_failures_total": set(),
    "funnel_scale": {"learner", "tensor"},
    "funnel_step_size": {"learner", "tensor"},
    "funnel_expert_weight": {"expert"},
    "funnel_expert_age_batches": {"expert"},
    "funnel_gain": {"learner", "tensor", "quantile"},
    "funnel_gain_at_bound_ratio": {"learner", "tensor", "bound"},
    "funnel_alignment": {"learner", "tensor"},
    "funnel_gradient_norm": {"learner", "tensor"},
    "funnel_update_norm": {"learner", "tensor"},
    "funnel_accuracy": {"learner", "window"},
    "funnel_loss": {"learner", "window"},
    "funnel_calibration_observed": {"learner", "bin"},
    "funnel_calibration_predicted": {"learner", "bin"},
    "funnel_class_precision": {"class"},
    "funnel_class_recall": {"class"},
    "funnel_confused_total": {"class", "predicted"},
    "funnel_model_version": set(),
    "funnel_backlog_bytes": set(),
    "funnel_balanced_weights": set(),
    "funnel_backlog_examples": set(),
    "funnel_damaged_entries_total": set(),
    "funnel_asked_total": set(),
    "funnel_labels_total": {"result"},
    "funnel_open_questions": set(),
    "funnel_open_bytes": set(),
    "funnel_oldest_question_seconds": set(),
    "funnel_damaged_questions_total": set(),
    "funnel_evicted_questions_total": set(),
    "funnel_lost_questions_total": set(),
    "funnel_label_delay_seconds_bucket": {"le"},
    "funnel_lag_seconds": set(),
    "funnel_snapshot_age_seconds": set(),
    "funnel_checkpoint_age_seconds": set(),
    "funnel_archive_age_seconds": set(),
    "funnel_archive_bytes": set(),
    "funnel_archive_failures_total": set(),
    "funnel_ready": set(),
    "funnel_workers": set(),
    "funnel_learning": {"condition"},
    "funnel_gain_distribution_bucket": {"learner", "tensor", "le"},
    "funnel_step_seconds_bucket": {"le"},
    "funnel_batch_examples_bucket": {"le"},
    "funnel_predict_seconds_bucket": {"le"},
    "funnel_http_request_seconds_bucket": {"route", "code", "le"},
}

CONTRACT_OF_ROWS = {
    "funnel_columns": set(),
    "funnel_column_missing_ratio": {"column"},
    "funnel_missing_values_total": {"column"},
    "funnel_new_keys_total": {"column"},
    "funnel_key_collision_ratio": set(),
}
"""The series that a model of rows has besides."""

CONTRACT_OF_PREDICTORS: dict[str, set[str]] = {
    "funnel_snapshot_lag_versions": set(),
    "funnel_snapshot_read_age_seconds": set(),
}
"""The series that a process has which only answers."""


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: httpx.Client) -> Samples:
    return samples(client.get("/metrics").text)


def samples(text: str) -> Samples:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def sample(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]
