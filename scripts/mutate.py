"""Seeded mutations of a room, and which of them the unit tests kill; see scripts/mutate.

Each mutation is applied alone, in a copy of the tree. First the unit tests run that import or name the mutated module,
then all others that can reach it through imports. A test kills a mutation when it fails, fails again alone, and passed
before; a run that hangs kills it, too. A survivor is either a test that is missing or a change that nobody can see (an
equivalent one): that is for a person to say.

Branch coverage of a room by its unit tests, child processes and threads included; [tool.coverage.run] in pyproject.toml
has the settings. ``coverage`` (7.10 or newer) is no dependency of the project and stands in no lock. The warning about
an empty data file is about a process that a test killed::

    .venv/bin/pip install coverage
    .venv/bin/coverage run --source obatchd/spool -m pytest tests/unit -q -p no:xdist
    .venv/bin/coverage combine -q
    .venv/bin/coverage report -m --include 'obatchd/spool/*'     lines and branches that no test reaches
    .venv/bin/coverage json -q --include 'obatchd/spool/*' -o - | .venv/bin/python -c '
        import json, sys
        document = json.load(sys.stdin)
        for name, file in [*document["files"].items(), ("all", {"summary": document["totals"]})]:
            print(name, file["summary"]["percent_branches_covered_display"])'
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "obatchd"
# They compare the text of the code with the pages: they fail for any change, whatever it does.
TEXT_TESTS = "tests/unit/test_architecture.py"
_TEST_S = 30  # the longest test takes 7 s on two busy cores
_RUN_S = 600
_LEAST_KILLED = 0.9

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Lt: (ast.GtE, ast.LtE), ast.LtE: (ast.Gt, ast.Lt),
    ast.Gt: (ast.LtE, ast.GtE), ast.GtE: (ast.Lt, ast.Gt),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_OTHER_WORD = {ast.And: ast.Or, ast.Or: ast.And}
_NUMBERS = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)


class Mutation(NamedTuple):
    """One change: the bytes from ``start`` to ``end`` of ``path`` become ``after``."""

    path: Path  # from the root of the tree
    line: int
    start: int
    end: int
    kind: str
    before: str
    after: str


class _Finder(ast.NodeVisitor):
    """Finds every mutation of one module, in the order of its text."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.found: list[Mutation] = []
        self._path = path
        self._content = content
        self._starts = [0]  # of each line
        for line in content.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._function = ""
        self._module = ast.parse(content)

    def find(self) -> list[Mutation]:
        self.visit(self._module)
        return sorted(
            set(self.found), key=lambda mutation: (mutation.start, mutation.end, mutation.kind, mutation.after)
        )

    def _add(self, node: ast.expr | ast.stmt, kind: str, after: ast.expr | str) -> None:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[node.end_lineno - 1] + node.end_col_offset
        before = " ".join(self._content[start:end].decode().split())
        text = after if isinstance(after, str) else f"({ast.unparse(after)})"
        self.found.append(Mutation(self._path, node.lineno, start, end, kind, before, text))

    # Places that are left alone.

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Text for people; and before Python 3.12 its parts do not know where they stand."""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        around, self._function = self._function, node.name
        self._visit_all([*node.args.defaults, *(default for default in node.args.kw_defaults if default)])
        self._visit_all(node.body)
        self._function = around

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Call(self, node: ast.Call) -> None:
        if not _is_logging(node):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._condition(node.test)
        self.generic_visit(node)

    # Statements.

    def visit_Assign(self, node: ast.Assign) -> None:
        alone = len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        if node in self._module.body and alone and all(isinstance(part, _NUMBERS) for part in ast.walk(node.value)):
            return  # a figure that was chosen
        outside = not any(isinstance(target, (ast.Name, ast.Tuple)) for target in node.targets)
        if outside and self._function != "__init__":
            self._add(node, "statement removed", "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(node, "statement removed", "pass")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(call, ast.Call) and not _is_logging(call):
            self._add(node, "statement removed", "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        falsy = isinstance(node.value, ast.Constant) and not node.value.value  # to most callers the same as None
        if node.value is not None and not falsy:
            self._add(node, "value dropped", "return None")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "statement removed", "pass")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(node, "statement removed", "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self._add(node, "statement removed", "pass")

    # Expressions.

    def visit_While(self, node: ast.While) -> None:
        self._add(node.test, "condition", "False")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for number, operator in enumerate(node.ops):
            for other in _COMPARISONS[type(operator)]:
                operators = [*node.ops[:number], other(), *node.ops[number + 1 :]]
                self._add(node, "comparison", ast.Compare(node.left, operators, node.comparators))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._add(node, "and/or", ast.BoolOp(_OTHER_WORD[type(node.op)](), node.values))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            self._add(node, "sign", node.operand)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in _ARITHMETIC and not (_is_text(node.left) or _is_text(node.right)):
            self._add(node, "arithmetic", ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(node, "constant", str(not node.value))
        elif isinstance(node.value, (int, float)):
            self._add(node, "constant", f"({node.value + 1!r})")

    def _condition(self, test: ast.expr) -> None:
        binds = any(isinstance(part, ast.NamedExpr) for part in ast.walk(test))  # a name that True would leave unbound
        for value in ("False",) if binds else ("True", "False"):
            self._add(test, "condition", value)

    def _visit_all(self, nodes: Sequence[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)


def _is_logging(call: ast.Call) -> bool:
    function = call.func
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "_log"


def _is_text(node: ast.expr) -> bool:
    """What no other operator takes: such a change would only show that Python has types."""
    return (
        isinstance(node, (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict))
        or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str")
    )


def find_mutations(path: Path, content: bytes) -> list[Mutation]:
    """Every mutation of a module, in the order of its text."""
    return _Finder(path, content).find()


class Tree:
    """A copy of the files that git has, or would take, in which one module at a time is mutated."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._changes = 0
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        # A mutated kill(2) reaches nobody but the tests, and what a killed run leaves behind ends with it.
        # The shell is their init: it reaps what a test leaves to it.
        contain = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh"]
        tried = subprocess.run([*contain, "true"], capture_output=True) if shutil.which("unshare") else None
        self._command = [*(contain if tried is not None and tried.returncode == 0 else []), sys.executable]
        self._environment = {**os.environ, "PYTHONPATH": str(root)}

    @contextlib.contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        path = self.root / mutation.path
        original = path.read_bytes()
        content = original[: mutation.start] + mutation.after.encode() + original[mutation.end :]
        compile(content, path, "exec")
        try:
            self._write(path, content)
            yield
        finally:
            self._write(path, original)

    def _write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        # Compiled code is found again by a time in whole seconds and a size: give every change a second of its own.
        self._changes += 1
        os.utime(path, (self._changes, self._changes))

    def run(self, tests: Sequence[str], *more: str) -> str:
        """The first test that fails, or where none can be named the reason of the failure; empty when all pass."""
        limit = ["--timeout", str(_TEST_S), "--timeout-method", "thread"]  # a signal ends no hang outside of Python
        options = ["-x", "-q", "-p", "no:cacheprovider", *limit, "-rfE", "--tb=no", *more]
        if not tests:
            return ""
        process = subprocess.Popen(
            [*self._command, "-m", "pytest", *options, *tests], cwd=self.root, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            said = process.communicate(timeout=_RUN_S)[0]
        except subprocess.TimeoutExpired:
            return f"a run of more than {_RUN_S} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            return ""
        if failed := re.search(r"^(?:FAILED|ERROR) (\S+?\.py(?:::\w+)*)", said, re.MULTILINE):
            return failed[1]
        if hung := re.search(r'(tests/unit/test_\w+\.py)", line \d+, in (test_\w+)', said):
            return "::".join(hung.groups())
        return f"pytest, status {process.returncode}: {said.strip()[-200:]}"

    def killed_by(self, tests: Sequence[str], *more: str) -> str:
        """The first test that fails, and fails again alone; empty when there is none."""
        unsteady: list[str] = []
        while failed := self.run(tests, *more, *(f"--deselect={test}" for test in unsteady)):
            again = [failed] if failed.startswith("tests/") else tests
            if failed in unsteady or self.run(again, "-p", "no:xdist"):
                return failed
            unsteady.append(failed)
        return ""


class Tests:
    """The files of unit tests, and which of them have to do with a module."""

    def __init__(self, root: Path) -> None:
        self.all = [path.relative_to(root).as_posix() for path in sorted((root / "tests/unit").glob("test_*.py"))]
        self.all.remove(TEXT_TESTS)
        self._named: dict[str, set[str]] = {}  # by module: modules of ours that it imports or names
        for place in (*sorted((root / PACKAGE).glob("**/*.py")), *sorted((root / "tests").glob("**/*.py"))):
            inside = place.relative_to(root).with_suffix("").parts
            name = ".".join(inside) if inside[0] == PACKAGE else place.stem
            self._named[name] = _modules_named(place.read_text("utf-8"))

    def near(self, module: str) -> list[str]:
        """Those that import or name a module themselves, or through one helper."""
        helpers = {name for name, named in self._named.items() if module in named and not name.startswith(PACKAGE)}
        return [test for test in self.all if {module, *helpers - {"conftest"}} & self._named[Path(test).stem]]

    def far(self, module: str) -> list[str]:
        """All others in whose processes it can be loaded."""
        reached = {module}
        while more := {name for name, named in self._named.items() if name not in reached and named & reached}:
            reached |= more
        return [test for test in self.all if Path(test).stem in reached and test not in self.near(module)]


def _modules_named(text: str) -> set[str]:
    """Every dotted name of ours in a text, with what is imported from it, and the names of helpers."""
    named = set(re.findall(rf"\b{PACKAGE}(?:\.\w+)+", text))
    for package, names in re.findall(rf"\bfrom ({PACKAGE}[.\w]*) import (\([^)]*\)|[^\n]*)", text):
        named |= {f"{package}.{name}" for name in re.findall(r"\w+", names)}
    return named | set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "rooms", nargs="+", metavar="ROOM", help=f"a folder or a module below {PACKAGE}/, as in docs/rooms.md"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the choice (default 1)")
    parser.add_argument("--count", type=int, default=30, help="how many mutations (default 30)")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="only these of them")
    parser.add_argument("--list", action="store_true", help="show them and run nothing")
    options = parser.parse_args()
    modules: list[Path] = []
    for room in options.rooms:
        place = ROOT / PACKAGE / room.replace(".", "/").removeprefix(f"{PACKAGE}/")
        found = sorted(place.glob("**/*.py")) if place.is_dir() else [place.with_suffix(".py")]
        if not found or not found[0].is_file():
            parser.error(f"there is no {place}")
        modules += [path.relative_to(ROOT) for path in found]
    every = [mutation for path in modules for mutation in find_mutations(path, (ROOT / path).read_bytes())]
    chosen = sorted(random.Random(options.seed).sample(every, min(options.count, len(every))))
    print(f"seed {options.seed}: {len(chosen)} of {len(every)} mutations in {len(modules)} modules", flush=True)
    numbered = [(n, mutation) for n, mutation in enumerate(chosen, 1) if not options.only or n in options.only]
    if options.list:
        for number, mutation in numbered:
            print(_label(number, mutation))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the tests and takes the copy away
    with tempfile.TemporaryDirectory(prefix="obatchd-mutate-", ignore_cleanup_errors=True) as directory:
        return _run(Tree(Path(directory)), numbered)


def _run(tree: Tree, numbered: Sequence[tuple[int, Mutation]]) -> int:
    tests = Tests(tree.root)
    if failed := tree.killed_by(tests.all, "-n", "2"):
        print(f"the unit tests fail without any mutation: {failed}", file=sys.stderr)
        return 2
    survivors: list[int] = []
    for number, mutation in numbered:
        print(_label(number, mutation), end=" ", flush=True)
        begun_s = time.monotonic()
        module = ".".join(mutation.path.with_suffix("").parts).removesuffix(".__init__")
        with tree.mutated(mutation):
            killer = tree.killed_by(tests.near(module), "-p", "no:xdist")  # starting two processes costs more
            killer = killer or tree.killed_by(tests.far(module), "-n", "2")
        print(f"{f'killed by {killer}' if killer else 'SURVIVED'} ({time.monotonic() - begun_s:.0f} s)", flush=True)
        if not killer:
            survivors.append(number)
    print(f"{len(numbered) - len(survivors)} of {len(numbered)} killed; survivors: {survivors or 'none'}")
    return int(len(survivors) > (1 - _LEAST_KILLED) * len(numbered) + 1e-9)


def _label(number: int, mutation: Mutation) -> str:
    place = f"{mutation.path}:{mutation.line}"
    return f"{number:3} {place}  {mutation.kind}: {mutation.before}  →  {mutation.after}\n   "


if __name__ == "__main__":
    sys.exit(main())
