"""``funnel schema``: infer the schema of a file of rows, as TOML to edit."""

import argparse
import sys

from service.commands.row_options import add_rows, kinds_of, rows_of

DESCRIPTION = (
    "Infer names and kinds of the columns of a file, and its labels, and write them as TOML: "
    "`funnel schema mine.csv > shop.toml`. Edit it, then start `funnel serve --schema shop.toml`."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help=".csv or .tsv (.gz, .bz2, .xz), .ndjson, .parquet, .arrow; - is standard input",
    )
    add_rows(parser)
    parser.add_argument(
        "--label",
        metavar="COLUMN",
        help="column of the labels [label if there is one, otherwise the last]",
    )


def run(options: argparse.Namespace) -> int:
    """Write the schema; return the exit status."""
    from service.commands.row_options import schema_of
    from service.fold.schema.toml import to_toml

    found = rows_of(options.file, options)
    sys.stderr.write(f"{found}\n")
    sys.stdout.write(to_toml(schema_of(found.stream(), kinds_of(options))))
    return 0
