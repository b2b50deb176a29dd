"""The Markdown files of the repository, and what is in them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (".github", "docker", "funnel", "service", "streams", "tests")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(found for folder in FOLDERS for found in (ROOT / folder).rglob("*.md"))]
)
README = ROOT / "README.md"
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")


def name_of(path: Path) -> str:
    """Return the path in the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the code blocks of these languages."""
    return [code for language, code in FENCE.findall(path.read_text()) if language in languages]


def commands(path: Path, program: str) -> list[str]:
    """Return the commands of a program in the code blocks; continued lines are one."""
    found = []
    for block in blocks(path, "sh", "console", "bash", "python"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(rf"(?:[A-Z_]+=\S+ )*{re.escape(program)} ", line):
                found.append(line)
    return found


def spans(path: Path) -> list[str]:
    """Return the inline code, with the line breaks in it as blanks."""
    text = FENCE.sub("", path.read_text())
    return [" ".join(code.split()) for code in SPAN.findall(text)]


def prose(path: Path) -> str:
    """Return the text without code, and without the tables that the code writes."""
    text = re.sub(r"<!-- (?!end).*?<!-- end -->", "", path.read_text(), flags=re.DOTALL)
    return SPAN.sub("`code`", FENCE.sub("", text))


def rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of all tables as cells, without emphasis."""
    for line in path.read_text().splitlines():
        if line.startswith("|"):
            yield [cell.strip().replace("**", "") for cell in line.strip("|").split("|")]


def section(path: Path, heading: str) -> str:
    """Return the text under a heading of the second level, or nothing if there is no such one."""
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", path.read_text(), re.DOTALL | re.MULTILINE
    )
    return found[1] if found else ""
