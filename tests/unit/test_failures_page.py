"""The table of failures names tests that exist, and every row has one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "internals" / "failures.md"
_NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def _rows() -> list[str]:
    return [
        line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ") and "| tried by |" not in line
    ]


def _tests_of(module: str) -> set[str]:
    [path] = TESTS.rglob(module)
    tree = ast.parse(path.read_bytes())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions}


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row.split("|")[1].strip())
def test_every_failure_has_a_test_that_exists(row: str) -> None:
    named = _NAMED.findall(row)
    assert named or "| the same" in row
    for module, test in named:
        assert test in _tests_of(module)
