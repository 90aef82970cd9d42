"""The page of promises names tests that are there, for each of them at least one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = re.compile(r"`([a-z]+/\w+\.py)::(\w+)`")


def test_every_promise_has_tests_that_are_there() -> None:
    table = PAGE.partition("## Promises, and their tests")[2].strip().splitlines()[2:]
    assert len(table) > 20
    for row in table:
        promise, tests = row.strip("| ").split(" | ")
        found = NAMED.findall(tests)
        assert found and NAMED.sub("", tests).strip() == "", f"no test, or something else beside it: {promise}"
        missing = [f"{file}::{name}" for file, name in found if name not in functions(ROOT / "tests" / file)]
        assert missing == [], promise


def functions(file: Path) -> set[str]:
    """The functions of a file of tests."""
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_page_is_found_from_where_people_look() -> None:
    assert "docs/security.md" in (ROOT / "SECURITY.md").read_text("utf-8")
    assert "](security.md)" in (ROOT / "docs" / "README.md").read_text("utf-8")
