"""The pages say what the code does, as far as a machine can see, and the code keeps the borders of docs/rooms.md."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import obatchd
from obatchd.dispatch import protocol
from obatchd.ollama import faults
from obatchd.servers.process import TRIED
from obatchd.servers.states import DESCRIPTIONS, TRANSITIONS
from obatchd.settings import reading
from obatchd.settings.base import Reload

PACKAGE = Path(obatchd.__file__).parent
DOCS = PACKAGE.parent / "docs"
TESTS = Path(__file__).parents[1]
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
NAMES = {name for page in PAGES.values() for name in re.findall(r"`([^`\n]+)`", page)}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}

ROOMS_PAGE = PAGES["rooms.md"]
HALLWAY = set(re.findall(r"`(\w+)`", ROOMS_PAGE.split("\n\n")[2])) | {"__version__"}
ROWS = {
    room: (set(re.findall(r"`([^`]+)`", holds)), set(re.findall(r"`([^`]+)`", imports)), imports)
    for room, holds, imports in re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|([^|]*)\|$", ROOMS_PAGE, re.MULTILINE)
}
NAMED_AS_A_WHOLE = {"cli", "simulator"}
EVERY_ROOM_BUT_CLI = set(ROWS) - {"cli"}


def section(page: str, title: str) -> str:
    return PAGES[page].split(f"\n## {title}\n")[1].split("\n## ")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of ours that are imported anywhere below ``tree``, without the leading ``obatchd.``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("obatchd.") for name in names if name.startswith("obatchd."))


def within(name: str, borders: set[str]) -> bool:
    return any(name == border or name.startswith(f"{border}.") for border in borders)


def room_of(name: str) -> str:
    """The room that a module, or what is imported from it, belongs to; the module itself in the hallway."""
    return next((room for room in ROWS if within(name, {room})), name.split(".")[0])


def may_import(room: str) -> set[str]:
    _, imports, words = ROWS[room]
    return EVERY_ROOM_BUT_CLI if "every room but" in words else imports


def defined(tree: ast.AST) -> Iterator[str]:
    """Classes and functions, those in classes too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def strings(function: str, keyword: str = "") -> set[str]:
    """The text given to every call of ``function``: its first argument, or the one called ``keyword``."""
    found: set[str] = set()
    for tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == function:
                values = [given.value for given in node.keywords if given.arg == keyword] if keyword else node.args[:1]
                found |= {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return found


@pytest.mark.parametrize("room", ROWS)
def test_imports_stay_within_the_row_of_their_room(room: str) -> None:
    allowed = {room} | HALLWAY | may_import(room)
    broken = [
        f"{module} imports {name}"
        for module, tree in MODULES.items()
        if room_of(module) == room
        for name in imported(tree)
        if room_of(name) not in allowed
    ]
    assert not broken


def test_the_hallway_uses_no_room() -> None:
    for module in (module for module in MODULES if room_of(module) in HALLWAY):
        assert [name for name in imported(MODULES[module]) if room_of(name) not in HALLWAY] == []


def test_no_circle_of_rooms() -> None:
    """Rooms can be put in an order in which each uses only earlier ones."""
    left = {room: may_import(room) - {room} for room in ROWS}
    while ready := [room for room, needs in left.items() if not needs & left.keys()]:
        for room in ready:
            del left[room]
    assert not left


def test_every_package_is_a_room() -> None:
    assert {room_of(module) for module in MODULES} - HALLWAY == set(ROWS)


def test_no_room_is_crowded() -> None:
    """A folder is read at a glance: at most 16 modules."""
    folders = Counter(module.rpartition(".")[0] for module in MODULES)
    assert {folder: count for folder, count in folders.items() if count > 16} == {}


def test_the_command_lines_import_the_daemon_only_when_it_starts() -> None:
    for module, tree in MODULES.items():
        if module.startswith("cli."):
            at_once = {name for node in ast.iter_child_nodes(tree) for name in _direct(node)}
            assert not any(within(name, {"daemon"}) for name in at_once)
            assert module == "cli.obatchd" or not any(within(name, {"daemon"}) for name in imported(tree))


def _direct(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imported(ast.Module([node], []))


def test_every_module_is_in_the_row_of_its_room() -> None:
    missing = []
    for module in MODULES:
        if (room := room_of(module)) in ROWS and room not in NAMED_AS_A_WHOLE:
            named = ROWS[room][0]
            missing += [module] if not named & {module, module.rpartition(".")[0]} - {room} else []
    assert not missing


def test_no_module_on_a_row_is_gone() -> None:
    known = set(MODULES) | {module.rpartition(".")[0] for module in MODULES}
    named = {name for holds, _, _ in ROWS.values() for name in holds if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name)}
    files = {"burnin.md", "history.db"}
    assert named - known - files == set()


def test_no_module_on_a_page_is_gone() -> None:
    """A dotted name that begins with a room is a module, a package, something that a module defines, or a setting."""
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    files = (".sock", ".json", ".jsonl", ".toml", ".md", ".db")
    dotted = {name for name in NAMES if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and not name.endswith(files)}
    named = {name for name in dotted if name.split(".")[0] in packages}
    known = set(MODULES) | {module.rpartition(".")[0] for module in MODULES} | {leaf.key for leaf in reading.leaves()}
    known |= {f"{module}.{name}" for module, tree in MODULES.items() for name in defined(tree)}
    assert sorted(named - known) == []


def test_the_table_of_states_is_the_one_in_the_code() -> None:
    table = section("internals/servers.md", "States").split("| state | meaning | may become |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert {state: meaning for state, meaning, _ in rows} == {s.value: text for s, text in DESCRIPTIONS.items()}
    after = {state: set(re.findall(r"`(\w+)`", targets)) for state, _, targets in rows}
    assert after == {state.value: {target.value for target in targets} for state, targets in TRANSITIONS.items()}


def test_every_crash_point_is_on_a_page_and_no_other() -> None:
    points = strings("reach")
    assert points
    named = {name for name in NAMES if re.fullmatch(r"\w+\.(before|after)(_\w+)?", name)}
    assert named == points


def test_every_fault_is_on_the_page() -> None:
    table = PAGES["internals/faults.md"]
    assert [cause.code for cause in faults.Cause if f"`{cause.code}`" not in table] == []
    for kind in (faults.REQUEST, faults.SERVER, faults.CRASH, faults.LOAD, faults.ANSWER, faults.NOBODY):
        assert f"\n| `{kind}` |" in table


def test_every_message_between_main_and_worker_is_on_the_page() -> None:
    for union in (protocol.ToWorker, protocol.ToMain):
        for kind in union.__args__:
            assert f"\n| `{kind.__struct_config__.tag}` |" in section("internals/dispatch.md", "Main and worker")


def test_every_pool_of_threads_is_on_the_page() -> None:
    for prefix in strings("ThreadPoolExecutor", "thread_name_prefix"):
        assert f"\n| {prefix} " in section("internals/processes.md", "Threads")


def test_what_is_reloaded_is_on_the_page() -> None:
    """Each setting stands at its own mark; a table stands there as a whole."""
    marks = re.split(r"^\* \*([\w ]+)\*", section("internals/settings.md", "Reloading"), flags=re.MULTILINE)
    text = dict(zip(map(Reload, marks[1::2]), marks[2::2], strict=True))
    for leaf in reading.leaves():
        assert f"`[{leaf.section}]`" in text[leaf.reload] if leaf.section else f"`{leaf.name}`" in text[leaf.reload]


def test_the_page_names_the_versions_of_ollama_that_were_run() -> None:
    assert set(re.findall(r"\b\d\.\d\d\b", section("ollama.md", "Versions"))) == set(TRIED)
    recorded = {path.stem.removeprefix("ollama-") for path in (PACKAGE.parent / "tests" / "recorded").glob("*.json")}
    assert recorded == set(TRIED)


def test_the_libraries_on_the_page_are_those_that_are_installed() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {re.split(r"[^\w-]", dependency)[0] for dependency in project["dependencies"]}
    named = {
        word
        for row in re.findall(r"^\| ([^|]+) \|", section("decisions.md", "Libraries"), re.MULTILINE)
        for word in re.split(r"[ ,/]+", row)
    }
    builtin = {
        "asyncio",
        "multiprocessing",
        "forkserver",
        "SQLite",
        "(standard",
        "library)",
        "library",
        "tomllib",
        "http.client",
    }
    assert named - builtin - {"---"} == needed


def test_no_two_modules_of_tests_share_a_name() -> None:
    """``scripts/test-long`` collects all of them in one process, where the second would get the first."""
    names = Counter(path.stem for path in TESTS.rglob("*.py") if path.stem not in ("conftest", "__init__", "__main__"))
    assert [name for name, times in names.items() if times > 1] == []
