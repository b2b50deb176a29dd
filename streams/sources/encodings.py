"""The encoding of a text, as its byte order mark gives it."""

import codecs

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte order marks; that of UTF-32 begins as that of UTF-16 does."""


def encoding(start: bytes) -> str:
    """Return the name of the encoding of a text that begins with these bytes.

    >>> encoding(b"a,b"), encoding(codecs.BOM_UTF16_LE)
    ('utf-8-sig', 'utf-16')
    """
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8-sig")
