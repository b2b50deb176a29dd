"""Times as columns hold them: microseconds since 1970 in UTC, of the years 1 to 9999."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from streams.batch import InvalidBatchError
from streams.rows.bounds import SHOWN

TIME = pa.timestamp("us", "UTC")
FIRST = pa.scalar(datetime(1, 1, 1, tzinfo=UTC), TIME)
LAST = pa.scalar(datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), TIME)


def check_times(name: str, times: pa.TimestampArray) -> None:
    """Check that the calendar has all times of a column.

    Args:
        name: of the column.
        times: of the type TIME, [n].

    Raises:
        InvalidBatchError: one is before the year 1 or after 9999.
    """
    ends = pc.min_max(times)
    if not ends["min"].is_valid or (
        FIRST.value <= ends["min"].value and ends["max"].value <= LAST.value
    ):
        return
    outside = pc.or_(pc.less(times, FIRST), pc.greater(times, LAST))
    raise InvalidBatchError(
        f"column {name[:SHOWN]!r} has a time outside the years 1 to 9999; is its unit right?",
        name,
        pc.index(outside, True).as_py(),
    )
