"""Grafana's dashboard of the service, as JSON to standard output: ``make dashboards``.

Each panel says in its description what is good and what is bad. service/docs/metrics.md describes
the metrics.
"""

import json
import sys

from panels import (
    JSON,
    Query,
    Row,
    annotation,
    dashboard,
    heatmap,
    override,
    stat,
    timeseries,
    variable,
)

LEARNERS = 'learner=~"$learner"'
STACKED = {"stacking": {"mode": "normal"}, "fillOpacity": 60}
BARS = {"drawStyle": "bars", "fillOpacity": 60}
DRIFT = "sum by (detector, direction) (increase(funnel_drift_events_total[$__rate_interval]))"


def main() -> None:
    """Write the dashboard."""
    json.dump(funnel(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def funnel() -> JSON:
    """Return the dashboard."""
    return dashboard(
        "Funnel",
        "Operators: is it healthy? Users: is it learning? Researchers: what is Funnel doing?",
        [
            is_it_healthy(),
            is_it_learning(),
            how_far_off_are_numbers(),
            do_labels_come(),
            what_do_rows_hold(),
            what_is_funnel_doing(),
        ],
        [
            variable("model", "funnel_model_info", several=True),
            variable("instance", 'funnel_model_info{model=~"$model"}', several=True),
            variable("learner", "funnel_score", several=True),
            variable("tensor", "funnel_scale", several=False),
        ],
        [
            annotation(
                "Drift",
                "a detector saw the error change",
                Query(DRIFT, "{{detector}}, {{direction}}"),
                "orange",
            )
        ],
    )


def is_it_learning() -> Row:
    """Return the row on predictions, each scored before its label was learned."""
    return Row("User: is it learning?", [
        timeseries(
            "Accuracy, rolling",
            "Of the last 1,000 examples. Good: back up within some thousand examples of a drift "
            "mark, and above the shadows. Bad: it stays down.",
            Query(f'funnel_accuracy{{{LEARNERS},window="rolling"}}', "{{learner}}"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Accuracy, total",
            "Of all examples since the model was new. Good: rising or level. Bad: falling for "
            "long, which means worse than its own past, not only drift.",
            Query(f'funnel_accuracy{{{LEARNERS},window="total"}}', "{{learner}}"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Ahead of the shadows and floors",
            "Rolling accuracy of the served model minus that of each shadow and floor. Good: above "
            "0, most of all after drift. Bad: below 0 for long: that optimizer suits this stream "
            "better, or a rule without a model does.",
            Query(
                '-(funnel_accuracy{learner!="served",window="rolling"} - ignoring (learner) '
                'group_left () funnel_accuracy{learner="served",window="rolling"})',
                "of {{learner}}",
            ),
            unit="percentunit",
        ),
        timeseries(
            "Loss",
            "Cross-entropy, of the last 1,000 examples and of all. Good: far below ln(classes), "
            "which is guessing. Bad: above that, sure of itself and wrong.",
            Query(f"funnel_loss{{{LEARNERS}}}", "{{learner}} {{window}}"),
            unit="suffix: nats", limits=(0, None),
        ),
        timeseries(
            "Log loss of the last 1,000",
            "With the floors majority and no_change. Good: well below both. Bad: above one: a rule "
            "without a model gives better probabilities.",
            Query(f'funnel_score{{{LEARNERS},metric="log_loss",window="1000"}}', "{{learner}}"),
            unit="suffix: nats", limits=(0, None),
        ),
        timeseries(
            "Ranking and balance of the last 1,000",
            "AUC and PR-AUC with two classes, and balanced accuracy. Good: near 1. Bad: an AUC or "
            "balanced accuracy near 0.5 of two classes: it knows no more than a floor. With "
            "balanced weights (a line at 1) floors are compared by balanced accuracy.",
            Query(
                f'funnel_score{{{LEARNERS},metric=~"auc|pr_auc|balanced_accuracy",window="1000"}}',
                "{{learner}} {{metric}}",
            ),
            Query("funnel_balanced_weights", "balanced weights"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Calibration of the last 10,000",
            "Expected calibration error: by how much probabilities are off on average. Good: below "
            "0.02. Bad: above 0.1: do not take its probabilities at their word.",
            Query(f'funnel_score{{{LEARNERS},metric="ece",window="10000"}}', "{{learner}}"),
            limits=(0, None),
        ),
        timeseries(
            "Calibration by probability, of the last 10,000",
            "Share of hits less the mean probability, in bins of as many examples, by ascending "
            "probability. Good: near 0. Bad: below 0, the model is too sure there; above, not "
            "sure enough. Answers are those of calibrated; served is before the calibration.",
            Query(
                "funnel_calibration_observed - funnel_calibration_predicted",
                "{{learner}} bin {{bin}}",
            ),
        ),
        timeseries(
            "Recall by class",
            "Of the last 1,000 examples. Good: together and high. Bad: one class at 0 while the "
            "others are high: new, rare or renamed. A gap: not among the last 1,000.",
            Query("funnel_class_recall", "class {{class}}"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Precision by class",
            "Of the last 1,000 examples: the share of a class's predictions that are right. Good: "
            "together and high. Bad: low for one class, which is predicted where it is not. A gap: "
            "never predicted.",
            Query("funnel_class_precision", "class {{class}}"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Predicted classes",
            "Examples a second by their class and by the predicted one, of at most 10 classes. "
            "Good: classes as themselves. Bad: one as another: they look alike, or a label "
            "has changed its meaning.",
            Query("rate(funnel_confused_total[$__rate_interval])", "{{class}} as {{predicted}}"),
            unit="suffix: /s", limits=(0, None),
        ),
        timeseries(
            "Scored a second",
            "Examples predicted before they were learned, and those of them predicted right. Good: "
            "the two lines close together. Bad: both at 0 while something is sent.",
            Query(f"rate(funnel_scored_total{{{LEARNERS}}}[$__rate_interval])",
                  "{{learner}} scored"),
            Query(f"rate(funnel_correct_total{{{LEARNERS}}}[$__rate_interval])",
                  "{{learner}} right"),
            unit="suffix: /s", limits=(0, None),
        ),
        timeseries(
            "Drift events",
            "Times at which a detector saw the error change, worse or better; also marked in all "
            "panels. Good: few, each 'worse' followed by recovery. Bad: one after another.",
            Query(DRIFT, "{{detector}} {{direction}}"),
            limits=(0, None), style=BARS, width=12,
        ),
        timeseries(
            "Examples to recover",
            "From the last drift until rolling accuracy was within 2 points of what it had been. "
            "Good: some hundreds or thousands. Bad: growing from drift to drift.",
            Query("funnel_recovery_examples", "examples"),
            limits=(0, None), width=12,
        ),
    ])  # fmt: skip


def how_far_off_are_numbers() -> Row:
    """Return the row on predicted numbers and quantiles; it is empty for classes."""
    served = 'funnel_score{learner="served",metric=~"mae|pinball",window="1000"}'
    return Row("User: how far off are numbers?", [
        timeseries(
            "Error of the last 1,000",
            "Mean absolute error, in the unit of the numbers; of quantiles the mean pinball loss. "
            "With the floors mean and no_change. Good: well below both. Bad: above one: a rule "
            "without a model predicts better.",
            Query(_score("mae|pinball"), "{{learner}} {{metric}}"),
            limits=(0, None),
        ),
        timeseries(
            "Ahead of the floors by error",
            "Share of a floor's error that the model saves, over the last 1,000. Good: near 1, or "
            "level above 0. Bad: below 0 for long: a rule without a model predicts better.",
            Query(
                f'1 - 1 / (funnel_score{{learner=~"mean|no_change",metric=~"mae|pinball",'
                f'window="1000"}} / ignoring (learner) group_left () {served})',
                "of {{learner}}",
            ),
            unit="percentunit", limits=(None, 1),
        ),
        timeseries(
            "Root mean square error of the last 1,000",
            "In the unit of the numbers; large errors count most. Good: close to the mean absolute "
            "error, and below the floors. Bad: many times as large: a few numbers are far off.",
            Query(_score("rmse"), "{{learner}}"),
            limits=(0, None),
        ),
        timeseries(
            "R² of the last 1,000",
            "Share of the variance around the mean so far that is explained. Good: near 1, above "
            "no_change. Bad: at 0 or below: it knows no more than the mean.",
            Query(_score("r2"), "{{learner}}"),
            unit="percentunit", limits=(None, 1),
        ),
        timeseries(
            "Coverage of the last 1,000",
            "Share of the numbers within the interval of 90 %, or within the outermost quantiles. "
            "Good: 0.9, or what lies between these quantiles. Bad: far below: it is too sure; far "
            "above: its intervals are too wide.",
            Query(_score("coverage"), "{{learner}}"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Log score of the last 1,000",
            "Mean of -log of the density that was given to the numbers; it depends on their unit. "
            "Good: below the floors. Bad: above one, or a jump: numbers came that it held to be "
            "next to impossible.",
            Query(_score("log_score"), "{{learner}}"),
            unit="suffix: nats",
        ),
        timeseries(
            "Distance of the outermost quantiles",
            "Mean over the last 1,000, in the unit of the numbers. Good: below the floors, at the "
            "coverage that was asked for. Bad: growing without end.",
            Query(_score("width"), "{{learner}}"),
            limits=(0, None),
        ),
    ])  # fmt: skip


def _score(metric: str) -> str:
    """Return the scores of these names over the last 1,000, of the learners that are chosen."""
    return f'funnel_score{{{LEARNERS},metric=~"{metric}",window="1000"}}'


def what_is_funnel_doing() -> Row:
    """Return the row on step sizes."""
    band = "0.05|0.25|0.5|0.75|0.95"
    served = 'learner="served",tensor="$tensor"'
    return Row("Researcher: what is Funnel doing?", [
        timeseries(
            "Scale s",
            "What multiplies the step of a whole tensor; from 1, within 0.01…100. Good: up at a "
            "drift, down again after. Bad: a large tensor at 100 for long: steps are too short; at "
            "0.01: too long. With OPTIMIZER=funnel change LR.",
            Query(f"funnel_scale{{{LEARNERS}}}", "{{learner}} {{tensor}}"),
            log=True,
        ),
        timeseries(
            "Step size η s",
            "The learning rate in effect; of a pool the mean over its experts, by weight. Good: up "
            "at a drift, down again after. Bad: growing or falling without end.",
            Query(f"funnel_step_size{{{LEARNERS}}}", "{{learner}} {{tensor}}"),
            log=True,
        ),
        timeseries(
            "Gains p of $tensor",
            "Quantiles over the coordinates of what multiplies their steps; from 1, within "
            "0.001…1,000. Dark: the middle half; light: nine tenths. Good: widening at a drift. "
            "Bad: the whole band at an edge.",
            Query(f'funnel_gain{{{served},quantile=~"{band}"}}', "{{quantile}}"),
            log=True,
            overrides=[
                override("0.95", fillBelowTo="0.05", fillOpacity=10, lineWidth=0),
                override("0.05", lineWidth=0),
                override("0.75", fillBelowTo="0.25", fillOpacity=30, lineWidth=0),
                override("0.25", lineWidth=0),
                override("0.5", lineWidth=2),
            ],
        ),
        heatmap(
            "Distribution of the gains of $tensor",
            "How many coordinates have which gain; the axis is p. Good: around 1, wider after "
            "drift. Bad: all of it in the lowest or the highest bucket.",
            f"sum by (le) (funnel_gain_distribution_bucket{{{served}}})",
        ),
        timeseries(
            "Lowest and highest gain",
            "Of each tensor. Single coordinates at 0.001 or 1,000 are normal on long streams; how "
            "many are is in the panel on gains at a bound.",
            Query('funnel_gain{learner="served",quantile="0"}', "{{tensor}} lowest"),
            Query('funnel_gain{learner="served",quantile="1"}', "{{tensor}} highest"),
            log=True,
        ),
        timeseries(
            "Alignment",
            "cos(g, ν): does the newest gradient point where the last step went? Good: around 0. "
            "Above for long: steps are too small, and scales rise. Below for long: too large, and "
            "they fall.",
            Query(f"funnel_alignment{{{LEARNERS}}}", "{{learner}} {{tensor}}"),
            limits=(-1, 1),
        ),
        timeseries(
            "Gains at a bound",
            "Share of a tensor's coordinates whose gain can go no further. Good: a few percent "
            "(small tensors, such as a bias, more). Bad: a quarter of a large one: steps do not "
            "suit the stream. With OPTIMIZER=funnel change LR or GAIN_LR.",
            Query(f"funnel_gain_at_bound_ratio{{{LEARNERS}}}", "{{learner}} {{tensor}} {{bound}}"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Length of the gradient",
            "‖g‖ of the last batch. Good: level, higher for a while after drift. Bad: growing "
            "without end, or a jump by powers of ten: look at what is sent.",
            Query(f"funnel_gradient_norm{{{LEARNERS}}}", "{{learner}} {{tensor}}"),
            log=True,
        ),
        timeseries(
            "Length of the step",
            "‖s ν‖ of the last batch: how far the weights moved. Good: large after drift, small "
            "when it is learned. Bad: growing while accuracy falls.",
            Query(f"funnel_update_norm{{{LEARNERS}}}", "{{learner}} {{tensor}}"),
            log=True,
        ),
        timeseries(
            "Weights of the experts",
            "Shares of the mixture that predicts, with OPTIMIZER=pool; with MODEL=auto those of "
            "families. Good: they move to other experts at drift. Bad: one always has all: the "
            "stream needs steps that no expert takes.",
            Query(
                "funnel_family_weight or funnel_expert_weight unless on (instance, job) "
                "funnel_family_weight",
                "{{family}}{{expert}}",
            ),
            unit="percentunit", limits=(0, 1), style=STACKED,
        ),
        timeseries(
            "Batches since experts began",
            "With OPTIMIZER=pool. Four of six fall to 0 when they are renewed: after an abrupt "
            "shift they predicted worse than a model that knows nothing. Bad: they fall again and "
            "again; the labels are noise, or do not belong to these features.",
            Query("funnel_expert_age_batches", "{{expert}}"),
        ),
    ])  # fmt: skip


def what_do_rows_hold() -> Row:
    """Return the row on the columns of a model of rows; it is empty for dense features."""
    rate = "$__rate_interval"
    return Row("User: what do rows hold?", [
        timeseries(
            "Missing values by column",
            "Share of the rows learned just now without a usable value. Good: level. Bad: a jump, "
            "most of all to 1: a producer no longer sends the column, or has renamed it.",
            Query(
                f"sum by (instance, column) (rate(funnel_missing_values_total[{rate}]))"
                " / on (instance) group_left ()"
                f" sum by (instance) (rate(funnel_examples_total[{rate}]))",
                "{{column}}",
            ),
            unit="percentunit", limits=(0, 1), width=12,
        ),
        timeseries(
            "New keys by column",
            "Values, words and missing values that came for the first time, per row. Good: falling "
            "towards 0, or level where values never end. Bad: a jump: codes were renamed, or ids "
            "have got into a category.",
            Query(
                f"sum by (instance, column) (rate(funnel_new_keys_total[{rate}]))"
                " / on (instance) group_left ()"
                f" sum by (instance) (rate(funnel_examples_total[{rate}]))",
                "{{column}}",
            ),
            limits=(0, None), width=12,
        ),
        timeseries(
            "Missing values by column, of all rows",
            "Share of all rows since the column was added. Good: what the producers mean to send. "
            "Bad: near 1: the column says nothing.",
            Query("funnel_column_missing_ratio", "{{column}}"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Columns",
            "Columns of the schema. Good: level. Bad: rising: producers invent names, such as ids "
            "as keys of their JSON. Declare the columns then, with new_columns = \"reject\".",
            Query("funnel_columns", "columns"),
            limits=(0, None),
        ),
        timeseries(
            "Keys that share a slot",
            "Share of the visits of keys that met the slot of another key. Good: below a few "
            "percent. Bad: above a tenth: a larger TABLE_BITS, for a new model, helps.",
            Query("funnel_key_collision_ratio", "collisions"),
            unit="percentunit", limits=(0, 1),
        ),
    ])  # fmt: skip


def do_labels_come() -> Row:
    """Return the row on labels that come later; it is empty where nothing is asked with ids."""
    rate = "$__rate_interval"
    return Row("User: do labels come?", [
        timeseries(
            "Label coverage",
            "Share of the questions of the last LABEL_TTL that have a label. Good: level. Bad: "
            "falling: a producer of labels is slow, or has stopped.",
            Query("funnel_label_coverage", "coverage"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Labels by result",
            "Labels that came later, a second, by what became of them. Good: joined. Bad: unknown "
            "(other ids), late (a longer LABEL_TTL helps), conflict (two producers disagree), "
            "invalid.",
            Query(f"sum by (instance, result) (rate(funnel_labels_total[{rate}]))", "{{result}}"),
            limits=(0, None),
        ),
        timeseries(
            "Delay of labels",
            "Time from a question to its label, both as they came to the log's server. Good: well "
            "below LABEL_TTL. Bad: near it: the next ones are late.",
            *_quantiles("funnel_label_delay_seconds"),
            unit="s", limits=(0, None),
        ),
        timeseries(
            "Accuracy of given answers",
            "Accuracy of the answers that users got, over the last 1,000 with a label, and of the "
            "model when the labels came. Good: close to each other. Bad: the first far below: "
            "labels come so late that the answers were old.",
            Query('funnel_given_accuracy{window="rolling"}', "given"),
            Query('funnel_accuracy{learner="served",window="rolling"}', "when labels came"),
            unit="percentunit", limits=(0, 1),
        ),
        timeseries(
            "Questions",
            "Questions that wait for their labels, and those that were asked, a second. Good: "
            "level. Bad: no label comes for any of them.",
            Query("funnel_open_questions", "open"),
            Query(f"rate(funnel_asked_total[{rate}])", "asked a second"),
            limits=(0, None),
        ),
        timeseries(
            "Bytes of questions",
            "Bytes of the questions that are not closed. Good: below JOIN_BYTES. Bad: at it: the "
            "oldest are closed before their time.",
            Query("funnel_open_bytes", "bytes"),
            unit="bytes", limits=(0, None),
        ),
        timeseries(
            "Age of the oldest question",
            "Good: at most LABEL_TTL. Bad: above it: the trainer does not come to the log's end.",
            Query("funnel_oldest_question_seconds", "age"),
            unit="s", limits=(0, None),
        ),
        timeseries(
            "Questions without a chance",
            "Questions that were closed before their time, lost with TRACK=async, or damaged, a "
            "minute. Good: none.",
            Query(f"60 * rate(funnel_evicted_questions_total[{rate}])", "evicted"),
            Query(f"60 * rate(funnel_lost_questions_total[{rate}])", "lost"),
            Query(f"60 * rate(funnel_damaged_questions_total[{rate}])", "damaged"),
            limits=(0, None),
        ),
    ])  # fmt: skip


def is_it_healthy() -> Row:
    """Return the row on operation; the alerts in docker/prometheus/rules watch the same."""
    rate = "$__rate_interval"
    return Row("Operator: is it healthy?", [
        stat(
            "Ready",
            "Are predictions served? Good: ready. Bad: anything else for more than the minute that "
            "a start takes.",
            Query("min(funnel_ready)", "ready"),
            steps=[(None, "red"), (1, "green")], texts=[("0", "not ready"), ("1", "ready")],
        ),
        stat(
            "Learning",
            "The condition of the trainer. Good: learning, or standby for one that is, or "
            "paused if somebody wants that. Bad: waiting for the log, or halted; /health/ready "
            "gives the reason.",
            Query("max by (condition) (funnel_learning) > 0", "{{condition}}"),
            names=[
                ("learning", "green"), ("standby", "green"), ("following", "green"),
                ("paused", "blue"),
                ("starting", "orange"), ("replaying", "orange"), ("waiting", "red"),
                ("halted", "red"), ("stopped", "red"),
            ],
        ),
        stat(
            "Alerts",
            "Number of firing alerts, without notes. Prometheus' page Alerts lists them; "
            "docker/prometheus/runbook.md explains what to do. Good: 0.",
            Query('count(ALERTS{alertstate="firing",severity!="info"}) or vector(0)', "firing"),
            steps=[(None, "green"), (1, "red")],
        ),
        stat(
            "Examples learned",
            "Since the model was new, from HTTP and from Redis.",
            Query("max(sum by (instance) (funnel_examples_total))", "examples"), width=6,
        ),
        stat(
            "Model version",
            "Batches folded into the model. Good: rising while something is sent.",
            Query("max(funnel_model_version)", "version"), width=6,
        ),
        timeseries(
            "Learned a second, by source",
            "Good: as much as is sent. Bad: less, and the backlog grows.",
            Query(f"max by (source) (rate(funnel_examples_total[{rate}]))", "{{source}}"),
            unit="suffix: /s", limits=(0, None), style=STACKED,
        ),
        timeseries(
            "Backlog",
            "Examples in the log that wait to be learned. Good: about a batch. Bad: rising; at "
            "MAX_BACKLOG /learn answers 429.",
            Query("funnel_backlog_examples", "examples"),
            limits=(0, None),
        ),
        timeseries(
            "Backlog, in bytes of the log",
            "Bytes that wait, in the memory of the log's server. Good: about a batch. Bad: "
            "rising; at MAX_BACKLOG_BYTES /learn answers 429.",
            Query("funnel_backlog_bytes", "bytes"),
            unit="bytes", limits=(0, None),
        ),
        timeseries(
            "Lag",
            "Lag: age of the oldest entry that waits. Snapshot: age of the model that predicts. "
            "Good: about MAX_WAIT_MS. Bad: rising: more arrives than is learned.",
            Query("funnel_lag_seconds", "lag"),
            Query("funnel_snapshot_age_seconds", "snapshot"),
            unit="s", limits=(0, None),
        ),
        timeseries(
            "Snapshots read",
            "Of processes that only answer: time since the place of the snapshots was last read, "
            "and cuts that are published and not loaded. Good: about a second, and near 0. Bad: "
            "rising: they answer with an ageing model.",
            Query("funnel_snapshot_read_age_seconds", "{{instance}}: age in seconds"),
            Query("funnel_snapshot_lag_versions", "{{instance}}: cuts"),
            limits=(0, None),
        ),
        timeseries(
            "Processes",
            "Processes that take examples and answer on the port of a service. Good: WORKERS. "
            "Bad: fewer, or a line that falls again and again: the service's log has the reason.",
            Query("funnel_workers", "{{instance}}"),
            limits=(0, None),
        ),
        timeseries(
            "Time of a step",
            "Host time of one batch. Good: level. Bad: batch size over this time is below what "
            "is sent.",
            *_quantiles("funnel_step_seconds"),
            unit="s", limits=(0, None),
        ),
        timeseries(
            "Time of a prediction",
            "From a checked request to its answer. Good: milliseconds. Bad: p99 in the tenths of "
            "a second: the machine is too small for learning and predicting at this rate.",
            *_quantiles("funnel_predict_seconds"),
            unit="s", limits=(0, None),
        ),
        timeseries(
            "Time of a request, by route",
            "The body's arrival included. Good: milliseconds; /learn waits for the log's disk. "
            "Bad: /learn in seconds: the log server or its disk is slow.",
            *_quantiles("funnel_http_request_seconds", "route"),
            unit="s", limits=(0, None),
        ),
        timeseries(
            "Examples in a batch",
            "Good: BATCH_SIZE under load, fewer when little is sent. Bad: always few under load: "
            "MAX_WAIT_MS is too short.",
            Query(
                f"rate(funnel_batch_examples_sum[{rate}])"
                f" / rate(funnel_batch_examples_count[{rate}])",
                "mean",
            ),
            *_quantiles("funnel_batch_examples"),
            limits=(0, None),
        ),
        timeseries(
            "Batches a second",
            "Good: rising and falling with what is sent. Bad: 0 while there is a backlog.",
            Query(f"rate(funnel_batches_total[{rate}])", "batches"),
            unit="suffix: /s", limits=(0, None),
        ),
        timeseries(
            "Answers a second, by code",
            "Good: 2xx. Bad: 429 (the backlog is full), 503 (no log, halted, standby, stopping), "
            "any 500.",
            Query(f"sum by (code) (rate(funnel_http_request_seconds_count[{rate}]))", "{{code}}"),
            unit="suffix: /s", limits=(0, None), style=STACKED,
        ),
        timeseries(
            "Refused a second, by reason",
            "Good: 0. invalid: a sender's fault. unauthorized: a key is wrong. backlog_full, "
            "log_unavailable, learning_halted: the service's; see the runbook.",
            Query(f"sum by (code) (rate(funnel_rejected_total[{rate}]))", "{{code}}"),
            unit="suffix: /s", limits=(0, None),
        ),
        timeseries(
            "Dead entries, skipped and quarantined batches",
            "Entries that cannot be decoded, batches that were not finite, and batches that the "
            "loss guard quarantined; funnel:{model}:dead lists them all. Good: 0.",
            Query(f"increase(funnel_dead_entries_total[{rate}])", "dead entries"),
            Query(f"increase(funnel_damaged_entries_total[{rate}])", "damaged entries"),
            Query(f"increase(funnel_webhook_failures_total[{rate}])", "drift events not posted"),
            Query(f"increase(funnel_nonfinite_batches_total[{rate}])", "non-finite batches"),
            Query(f"increase(funnel_quarantined_batches_total[{rate}])", "quarantined batches"),
            limits=(0, None), style=BARS,
        ),
        timeseries(
            "Age of the checkpoint",
            "What a restart replays. Good: a saw up to CHECKPOINT_EVERY_SECONDS. Bad: rising "
            "beyond it.",
            Query("funnel_checkpoint_age_seconds", "age"),
            unit="s", limits=(0, None), width=12,
        ),
        timeseries(
            "Checkpoints",
            "Written and failed. Good: no failed ones. Bad: those only: the disk is full or "
            "read-only.",
            Query(f"increase(funnel_checkpoints_total[{rate}])", "{{result}}"),
            limits=(0, None), style=BARS, width=12,
        ),
        timeseries(
            "Archive",
            "Bytes of the log that are kept for replay. Good: level at the limit of ARCHIVE, or "
            "below it.",
            Query("funnel_archive_bytes", "bytes"),
            unit="bytes", limits=(0, None), width=12,
        ),
        timeseries(
            "Age of the archive",
            "The log is not trimmed before it is archived. Good: a saw up to ten minutes, and no "
            "failures. Bad: rising beyond it: the disk is full, or the object storage is away.",
            Query("funnel_archive_age_seconds", "age"),
            Query(f"increase(funnel_archive_failures_total[{rate}])", "failures"),
            unit="s", limits=(0, None), width=12,
        ),
    ])  # fmt: skip


def _quantiles(histogram: str, *labels: str) -> list[Query]:
    by, name = ", ".join(("le", *labels)), "".join(f"{{{{{label}}}}} " for label in labels)
    return [
        Query(
            f"histogram_quantile({q}, sum by ({by}) (rate({histogram}_bucket[$__rate_interval])))",
            f"{name}p{q * 100:g}",
        )
        for q in (0.5, 0.99)
    ]


if __name__ == "__main__":
    main()
