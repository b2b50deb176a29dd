"""The documents are in plain English: no words that a native engineer would not use here."""

import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, name_of, prose

PHRASES = (
    "anew", "is said", "are said", "was said", "says so", "say so", "is told", "are told",
    "was told", "told of", "tell of", "tells of", "put aside", "left out", "leave out",
    "leaves out", "passed over", "dealt out", "whom", "whoever", "beside", "behind", "or else",
    "else as", "else for", "begins again", "asks nothing", "for ever", "under way", "one's own",
    "likewise", "as ever", "but where", "but for",
)  # fmt: skip
HEADLESS = re.compile(r"(?:^|[.!?:] |\| |[-*] |\*\*)(Of|What|Who|Whose|Whether|Those|Else) ")
"""A sentence, a cell or an item that begins with a clause instead of a subject."""


def sentences(text: str) -> str:
    """Return the text without headings and questions, a paragraph a line."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"(?<![\n|])\n(?=[^\n|*\-\d#>])", " ", "\n".join(lines).strip())
    return re.sub(r"(?:What|Who|Whose|Whether)\b[^.!?\n]*\?", "", joined)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_document_has_a_phrase_that_no_native_engineer_writes(document: Path) -> None:
    text = " ".join(prose(document).lower().split())
    assert [p for p in PHRASES if re.search(rf"(?<![\w-]){re.escape(p)}(?![\w-])", text)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_sentence_has_a_subject(document: Path) -> None:
    found = [
        line[max(0, match.start() - 20) : match.end() + 40]
        for line in sentences(prose(document)).splitlines()
        for match in HEADLESS.finditer(line)
    ]
    assert found == []


def test_the_test_of_subjects_finds_what_it_looks_for() -> None:
    text = "# A\n\nWho runs.\nOf a pool\nit is.\n\n- Whether it fits\n\n# What it is\n\nWhat now?\n"
    found = [m[1] for line in sentences(text).splitlines() for m in HEADLESS.finditer(line)]
    assert found == ["Who", "Of", "Whether"]
