"""A message is read as a request to /learn is; what cannot be read says why."""

import json

import numpy as np
import pytest

from service.commands.sources.content import MAX_CONTENT, SHOWN, content_of, contents_of
from service.commands.sources.reader import Message
from service.log.entries import read_entry
from service.log.position import EntryId
from streams.batch import Batch
from streams.rows.entry import from_bytes
from streams.rows.rows import Rows

ENTRY = EntryId(1, 0)
TWO = Batch(np.float32([[1, 2, 3], [4, 5, 6]]), np.int64([0, 1]))


def read(raw: bytes, label: str | None = None, header: bytes = b"") -> dict[bytes, bytes]:
    """The fields of the entry as the log returns them."""
    fields = content_of(Message("p", 1, raw, header), label).fields
    return {k.encode(): v if isinstance(v, bytes) else b"%d" % v for k, v in fields.items()}


def table(raw: bytes, label: str | None = None, header: bytes = b"") -> tuple[object, object]:
    """The rows and the labels that a message holds."""
    entry = read_entry(ENTRY, read(raw, label, header), None)
    assert isinstance(entry.batch, Rows), entry.reason
    [chunk] = entry.batch.chunks
    assert chunk.labels is not None
    return chunk.columns.to_pylist(), chunk.labels.to_pylist()


BASIC, VIP = {"plan": "basic", "age": 41}, {"plan": "vip", "age": 7}


@pytest.mark.parametrize(
    "document",
    [
        {"rows": [BASIC, VIP], "labels": ["stay", "go"]},
        [{"row": BASIC, "label": "stay"}, {"row": VIP, "label": "go"}],
        b'{"row": {"plan": "basic", "age": 41}, "label": "stay"}\n\n'
        b'{"label": "go", "row": {"plan": "vip", "age": 7}}\n',
        b'{"plan": "basic", "age": 41, "label": "stay"}\n{"plan":"vip","age":7,"label":"go"}',
        b'\xef\xbb\xbf{\n "labels": ["stay", "go"],\n "rows": [\n'
        b'{"plan": "basic", "age": 41}, {"plan": "vip", "age": 7}]}',
    ],
)
def test_rows_are_read_in_every_form(document: object) -> None:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    assert table(raw) == ([BASIC, VIP], ["stay", "go"])


def test_a_flat_object_may_have_any_column_as_its_label() -> None:
    assert table(b'{"row": 3, "features": "x", "end": 1}', "end") == (
        [{"row": 3, "features": "x"}], ["1"],
    )  # fmt: skip


def test_a_line_of_csv_has_the_column_label_or_the_last_as_its_label() -> None:
    assert table(b"go,7\n", None, b"label,age\n") == ([{"age": 7}], ["go"])
    assert table(b"7,go\n", None, b"age,end\n") == ([{"age": 7}], ["go"])
    assert table(b"7,go\n", "age", b"age,end\n") == ([{"end": "go"}], ["7"])


def test_lines_of_csv_that_are_read_together_are_as_if_each_were_read_alone() -> None:
    lines = [b"%d,x%d\n" % (k, k % 3) for k in range(9)]
    lines[4] = b"1,2,3\n"
    messages = [Message("p", k, line, b"a,label\n") for k, line in enumerate(lines)]
    assert contents_of(messages) == [content_of(message) for message in messages]


@pytest.mark.parametrize(
    "raw",
    [
        TWO.to_bytes(),
        b'{"features": [[1, 2, 3], [4, 5, 6]], "labels": [0, 1]}',
        b'{"features": [1, 2, 3], "label": 0}\n{"features": [4, 5, 6], "label": 1}\n',
    ],
)
def test_dense_features_are_read_in_every_form(raw: bytes) -> None:
    entry = read_entry(ENTRY, read(raw), (3, 2))
    assert isinstance(entry.batch, Batch), entry.reason
    assert np.array_equal(entry.batch.features, TWO.features)
    assert np.array_equal(entry.batch.labels, TWO.labels)


def test_labels_of_questions_are_read_as_by_http() -> None:
    entry = read_entry(ENTRY, read(b'{"ids": ["a", "b"], "labels": [1, 0]}'), (3, 2))
    assert entry.labels is not None
    assert entry.labels.labels == (1, 0)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "the message is empty"),
        (b"\x00\x01", "not JSON"),
        (b"7", "expected an object with 'rows' and 'labels'"),
        (b"[1, 2]", "expected an object with 'rows' and 'labels'"),
        (b'{"a": 1}', "label"),
        (b'{"row": {"a": 1}, "label": 1}\n{', "not JSON"),
        (b'{"features": [[1], [2, 3]], "labels": [0, 1]}', "(example 1)"),
        (b" " * (MAX_CONTENT + 1), "bytes, at most"),
        (TWO.to_bytes()[:-1], ""),
    ],
)
def test_a_message_that_cannot_be_read_is_a_dead_letter_with_the_reason(
    raw: bytes, reason: str
) -> None:
    fields = read(raw)
    assert fields.keys() == {b"fault", b"message"}
    assert fields[b"message"] == raw[:SHOWN]
    for shape in (None, (3, 2)):
        entry = read_entry(ENTRY, fields, shape)
        assert entry.batch is None
        assert entry.reason
        assert reason in entry.reason


def test_long_integers_keep_their_digits() -> None:
    [row], _ = table(b'{"id": 12345678901234567890123, "label": "x"}')
    assert str(row["id"]).startswith("1234567890123456789")
    assert from_bytes(read(b'{"id": 9007199254740993, "label": "x"}')[b"arrow"]).chunks
