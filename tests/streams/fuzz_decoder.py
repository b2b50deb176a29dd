"""Fuzz the readers of batches, guided by the coverage of their code.

    pip install -e '.[fuzz]'
    python -m tests.streams.fuzz_decoder --seconds 300

A reader refuses with `InvalidBatchError`, or what it accepts is, written and read again, the same;
and Python's own reader finds nothing but numbers in it. An input's first byte chooses the reader.
Inputs worth keeping, and those that fail, go to ``build/fuzz``.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tests.service.fuzz import DIMENSIONS, shaped

SEEDS = {
    0: [
        b'{"features": [[0.5, -1e3], [2, 0]], "labels": [1, 0]}',
        b'{"labels": [true], "features": [[null]]}',
        rb'{"\u0066eatures": [["1", {}]], "labels": [18446744073709551615]}',
    ],
    1: [b'{"features": [0.5, 1], "label": 3}\n\n{"label": 0, "features": [1e39, false]}\r\n'],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--directory", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["streams.batch", "streams.json_batch"]):
        from streams.batch import Batch, InvalidBatchError, check, decode
        from streams.json_batch import from_json, from_ndjson

    def to_json(batch: Batch) -> bytes:
        return orjson.dumps({"features": batch.features.tolist(), "labels": batch.labels.tolist()})

    def to_ndjson(batch: Batch) -> bytes:
        pairs = zip(batch.features.tolist(), batch.labels.tolist(), strict=True)
        return b"\n".join(orjson.dumps({"features": x, "label": y}) for x, y in pairs)

    def rows_of_json(raw: bytes) -> list[list[Any]]:
        return json.loads(raw)["features"]

    def rows_of_ndjson(raw: bytes) -> list[list[Any]]:
        return [json.loads(line)["features"] for line in raw.split(b"\n") if line.strip()]

    formats = [
        (from_json, to_json, rows_of_json),
        (from_ndjson, to_ndjson, rows_of_ndjson),
        (decode, Batch.to_bytes, lambda raw: []),
    ]

    def try_one(data: bytes) -> None:
        read, write, rows = formats[data[0] % len(formats)] if data else formats[0]
        raw = data[1:]
        try:
            batch = read(raw)
            check(batch, 2, 5)
        except InvalidBatchError:
            return
        assert {type(number) for row in rows(raw) for number in row} <= {int, float}
        again = read(write(batch))
        for was, became in ((batch.features, again.features), (batch.labels, again.labels)):
            assert became.dtype == was.dtype
            np.testing.assert_array_equal(became, was)

    corpus = options.directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    labels = np.array([4, 0])
    shapes = [
        shape for size in DIMENSIONS for shape in ([size, 0], [0, size], [size, 2], [size, size])
    ]
    binary = [shaped(shape, [shape[0]], kind) for shape in shapes for kind in ("F32", "F16")]
    binary += [Batch(np.ones((2, 2), kind), labels).to_bytes() for kind in ("u1", "f2", "f4")]
    for kind, seeds in (SEEDS | {2: binary}).items():
        for number, seed in enumerate(seeds):
            (corpus / f"seed-{kind}-{number}").write_bytes(bytes([kind]) + seed)
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={options.seconds}", "-max_len=4096",
         f"-artifact_prefix={options.directory}/", str(corpus)],
        try_one,
    )  # fmt: skip
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
