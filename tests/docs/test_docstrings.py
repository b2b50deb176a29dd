"""Docstrings and comments match the code, and are in plain English as the documents are."""

import ast
import importlib
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.documents import ROOT, name_of
from tests.docs.test_english import PHRASES

PACKAGES = ("funnel", "service", "streams")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEADLESS = re.compile(r"(?:^|[.!?] )(Of|What|Who|Whose|Whether|Those|Else) |^See ")
REFERENCE = re.compile(rf"(?<!`)`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)`")
ARGUMENT = re.compile(r" {4}([\w, ]+): ")

Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, those of its variables too."""
    for node in ast.walk(ast.parse(path.read_text())):
        for statement in node.body if isinstance(node, Node) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield " ".join(text.split())


def comments(path: Path) -> Iterator[str]:
    """Yield the comments of a module; the lines of one are joined."""
    row, joined = -1, ""
    with path.open() as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                text = token.string.lstrip("# ")
                if token.start[0] == row + 1:
                    joined += f" {text}"
                else:
                    yield joined
                    joined = text
                row = token.start[0]
    yield joined


def exists(reference: str) -> bool:
    """Return whether a dotted name leads to a module, or to something in one."""
    parts = reference.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def parameters(node: Node) -> set[str]:
    """Return the names that the section ``Args`` of a docstring may have."""
    if isinstance(node, ast.Module):
        return set()
    if isinstance(node, ast.ClassDef):
        fields = {s.target.id for s in node.body if isinstance(s, ast.AnnAssign)
                  and isinstance(s.target, ast.Name)}  # fmt: skip
        made_by = [s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"]
        return fields.union(*map(parameters, made_by))
    own = node.args
    each = (*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg)
    return {argument.arg for argument in each if argument is not None}


def arguments(docstring: str) -> set[str]:
    """Return the names in the section ``Args`` of a clean docstring."""
    _, _, section = docstring.partition("\nArgs:\n")
    lines = re.split(r"\n(?=\S)", section)[0].splitlines()
    found = (ARGUMENT.match(line) for line in lines)
    return {name.strip() for match in found if match for name in match[1].split(",")}


def stale_arguments(source: str) -> list[str]:
    """Return the arguments that docstrings describe and signatures do not have."""
    return [
        f"{getattr(node, 'name', 'module')}: {name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, Node) and (text := ast.get_docstring(node))
        for name in sorted(arguments(text) - parameters(node))
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_reference_to_a_package_resolves(path: Path) -> None:
    texts = (*docstrings(path), *comments(path))
    found = {name for text in texts for name in REFERENCE.findall(text)}
    assert [name for name in sorted(found) if not exists(name)] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_documented_argument_is_a_parameter(path: Path) -> None:
    assert stale_arguments(path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstrings_and_comments_are_in_plain_english(path: Path) -> None:
    for text in (*docstrings(path), *comments(path)):
        found = [p for p in PHRASES if re.search(rf"(?<![\w-]){p}(?![\w-])", text.lower())]
        assert (found, HEADLESS.search(text)) == ([], None), text


def test_these_tests_find_what_they_look_for() -> None:
    assert exists("service.fold.step.Fold.can_replay")
    assert not exists("service.old.module")
    assert not exists("service.fold.step.Fold.gone")
    docstring = "Add.\\n\\nArgs:\\n    a: one.\\n    b: another.\\n"
    assert stale_arguments(f"def f(a: int) -> None:\n    '{docstring}'\n") == ["f: b"]
    assert HEADLESS.search("A loss. Of each example.")
