"""scripts/mutate changes what a program does, and nothing that only people read."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "mutate.py"
_spec = importlib.util.spec_from_file_location("mutate", _SCRIPT)
assert _spec is not None and _spec.loader is not None
mutate = importlib.util.module_from_spec(_spec)
sys.modules["mutate"] = mutate
_spec.loader.exec_module(mutate)


def mutants(code: str) -> set[str]:
    """The lines that mutations make of ``code``."""
    content = code.encode()
    found = set()
    for mutation in mutate.find_mutations(Path("module.py"), content):
        changed = content[: mutation.start] + mutation.after.encode() + content[mutation.end :]
        compile(changed, "module.py", "exec")
        assert changed != content
        [line] = [new for old, new in zip(code.split("\n"), changed.decode().split("\n"), strict=True) if old != new]
        found.add(line.strip())
    return found


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("a = b < c", {"a = (b >= c)", "a = (b <= c)"}),
        ("a = b is None", {"a = (b is not None)"}),
        ("a = b and not c", {"a = (b or not c)", "a = b and (c)"}),
        ("a = b + c", {"a = (b - c)"}),
        ("def f(ä=2):\n    return True", {"def f(ä=(3)):", "return False", "return None"}),
        ("if a:\n    raise ValueError", {"if True:", "if False:", "pass"}),
        ("if x := a:\n    f(x)", {"if False:", "pass"}),
        ("while a:\n    break", {"while False:", "pass"}),
        ("a = [b for b in c if b]", {"a = [b for b in c if True]", "a = [b for b in c if False]"}),
        ("def f(self):\n    self.a = b\n    self.c += d", {"pass"}),
    ],
)
def test_each_kind_of_change_is_made(code: str, wanted: set[str]) -> None:
    assert mutants(code) == wanted


@pytest.mark.parametrize(
    "code",
    [
        '"""Fewer than 3."""', "_LIMIT_S = 60 * 5.0", "def f(a: Literal[1, 2]) -> Annotated[int, 3]: ...", "a: List[0]",
        "_log.info('event', count=1 + 2)", "a = f'{b + 1} left'", "a = 'x' + b", "a = b / 'name'", "a = b + [c]",
        "if TYPE_CHECKING:\n    a = 1 + 1", "class A(Struct, frozen=True): ...", "@decorated(1)\ndef f(): ...",
        "def __repr__(self):\n    return a + b", "def __init__(self):\n    self.a = b", "def f():\n    return None",
        "def f():\n    return",
    ],
)  # fmt: skip
def test_what_changes_nothing_or_only_text_is_left_alone(code: str) -> None:
    assert mutants(code) == set()


def test_mutations_of_a_tree_are_the_same_every_time() -> None:
    content = _SCRIPT.read_bytes()
    first, second = (mutate.find_mutations(Path("module.py"), content) for _ in range(2))
    assert (
        first
        == second
        == sorted(set(first), key=lambda mutation: (mutation.start, mutation.end, mutation.kind, mutation.after))
    )
    assert len(first) > 100
