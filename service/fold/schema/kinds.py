"""Kinds of columns, the parts of a time, and the policies for new columns and labels."""

from enum import StrEnum


class Kind(StrEnum):
    """The kind of a column; the encoding of its values follows from it."""

    NUMBER = "number"
    CATEGORY = "category"
    TIME = "time"
    TEXT = "text"
    BOOL = "bool"


class Part(StrEnum):
    """A part of a time (UTC) that is a category of its own."""

    HOUR = "hour"
    """0…23."""
    WEEKDAY = "weekday"
    """0…6; 0 is Monday."""


class ColumnPolicy(StrEnum):
    """The treatment of columns that are neither declared nor in the first batch."""

    ADD = "add"
    IGNORE = "ignore"
    REJECT = "reject"


class LabelPolicy(StrEnum):
    """The treatment of labels that the schema does not have."""

    GROW = "grow"
    OTHER = "other"
    REJECT = "reject"
