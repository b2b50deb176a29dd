"""``funnel predict``: let a service predict the rows of a file."""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from service.commands.remote import KEYS, RemoteError, Service, add_to, key, message_of
from service.commands.stream_options import positive_int

if TYPE_CHECKING:
    import httpx

    from streams.rows.rows import Chunk

DESCRIPTION = (
    "Send the rows of a file to a service, and write its answers to standard output in the order "
    "of the rows. The model does not change. A model of rows takes columns by their names; one of "
    "dense features takes all columns in their order. A column of labels may be there, if it has "
    "the name that the model's schema has for it, or is called label. With keys, "
    + KEYS["read"]
    + "."
)
LABEL = "label"
ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help=".csv or .tsv (.gz, .bz2, .xz), .ndjson, .parquet, .arrow; - is standard input",
    )
    add_to(parser)
    parser.add_argument(
        "--drop",
        type=lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
        default=(),
        metavar="COLUMNS",
        help="columns to remove, with commas",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=1_000,
        metavar="N",
        help="rows in a request [1000]",
    )
    parser.add_argument(
        "--format",
        choices=("ndjson", "csv"),
        default="ndjson",
        help="ndjson: an object a row, with the probabilities of all classes; csv: a header, and a "
        "line a row with the label and its probability, or the number [ndjson]",
    )


def run(options: argparse.Namespace) -> int:
    """Write the answers; return the exit status."""
    import orjson

    from streams.rowfile import read_questions

    rows = read_questions(options.file, options.drop)
    lines = csv.writer(sys.stdout, lineterminator="\n")
    is_first = True
    with closing(Service(options.to, key("PREDICT", "API"))) as service:
        request = _request_of(service)
        for start in range(0, len(rows), options.batch_size):
            at = start
            for chunk in rows.part(start, start + options.batch_size).chunks:
                for answer in _answers(_answered(request(chunk), at)):
                    if options.format == "ndjson":
                        sys.stdout.write(orjson.dumps(answer).decode() + "\n")
                        continue
                    cells = _cells(answer)
                    if is_first:
                        lines.writerow(cells)
                        is_first = False
                    lines.writerow(cells.values())
                at += len(chunk)
    return 0


def _request_of(service: Service) -> "Callable[[Chunk], httpx.Response]":
    """Return what asks a service for its answers to rows, as its model takes them."""
    model = service.get("/model")
    if not model.is_success:
        raise RemoteError(f"the service answered {model.status_code}: {message_of(model)}")
    found = model.json()
    if found["inputs"] == "rows":
        return lambda chunk: service.post("/predict", _arrow(chunk), ARROW)
    width: int = found["hyperparameters"]["features"]
    return lambda chunk: service.post("/predict", _dense(chunk, width), JSON)


def _arrow(chunk: "Chunk") -> bytes:
    """Return rows as an Arrow stream."""
    from streams.rows.ipc.arrow import to_ipc

    return to_ipc(chunk)[0]


def _dense(chunk: "Chunk", width: int) -> bytes:
    """Return rows of numbers as the body of a request to a model of ``width`` dense features.

    Raises:
        RemoteError: a column has no numbers, or there are more or fewer columns.
    """
    import orjson

    columns = chunk.columns
    names = list(columns.schema.names)
    if len(names) == width + 1 and LABEL in names:
        names.remove(LABEL)
    if len(names) != width:
        raise RemoteError(
            f"the model takes {width} dense features, and the file has {len(names)} columns; "
            "remove some with --drop"
        )
    values = [columns.column(name).to_pylist() for name in names]
    for name, column in zip(names, values, strict=True):
        if wrong := [v for v in column if isinstance(v, bool) or not isinstance(v, int | float)]:
            raise RemoteError(
                f"column {name!r} has {_shown(wrong[0])}, and the model takes numbers alone; "
                "remove the column with --drop"
            )
    return orjson.dumps({"features": list(zip(*values, strict=True))})


def _shown(value: object) -> str:
    return "a missing value" if value is None else repr(value)


def _answered(answer: "httpx.Response", start: int) -> Mapping[str, Any]:
    """Return the answer to the rows from ``start`` on.

    Raises:
        RemoteError: it is an error; the message names the row of the file.
    """
    if answer.is_success:
        found: dict[str, Any] = answer.json()
        return found
    where = ""
    try:
        where = f"row {start + answer.json()['error']['index'] + 1}: "
    except (ValueError, KeyError, TypeError):
        where = f"rows from {start + 1}: "
    raise RemoteError(f"{where}the service answered {answer.status_code}: {message_of(answer)}")


def _answers(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answer to each row."""
    if "labels" in found:
        for label, probabilities in zip(found["labels"], found["probabilities"], strict=True):
            yield {"label": label, "probabilities": probabilities}
        return
    for k, value in enumerate(found["values"]):
        answer = {"value": value}
        if "std" in found:
            answer["std"] = found["std"][k]
        if "quantiles" in found:
            answer["quantiles"] = {q: values[k] for q, values in found["quantiles"].items()}
        yield answer


def _cells(answer: Mapping[str, Any]) -> dict[str, object]:
    """Return an answer as a line of CSV has it."""
    if "label" not in answer:
        quantiles = answer.get("quantiles", {})
        rest = {name: value for name, value in answer.items() if name != "quantiles"}
        return rest | {f"quantile {q}": value for q, value in quantiles.items()}
    label, probabilities = answer["label"], answer["probabilities"]
    values = probabilities.values() if isinstance(probabilities, dict) else probabilities
    return {"label": label, "probability": max(values)}
