"""``docs/architecture.md`` says what the code does, as far as a machine can see, and the code keeps its own borders."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import obatchd
from obatchd import settings_io
from obatchd.dispatch import faults, protocol
from obatchd.servers.process import SUPPORTED
from obatchd.servers.states import DESCRIPTIONS, TRANSITIONS

PACKAGE = Path(obatchd.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
NAMES = set(re.findall(r"`([^`\n]+)`", PAGE))
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}

COMMON = {
    "errors",
    "log",
    "settings",
    "settings_base",
    "settings_context",
    "settings_gpu_health",
    "settings_burnin",
    "crash_points",
    "rate",
    "__version__",
}
# What the modules of each package may import besides their own package and COMMON: a package or one module of it.
MAY_IMPORT = {
    "jobs": {"spool.ledger"},
    "spool": {"jobs.model"},
    "gpus": {"simulator.gpus"},
    "servers": {"gpus", "jobs.model"},
    "prompts": set(),
    "context": {"jobs.formats"},
    "dispatch": {"jobs", "prompts", "context"},
    "control": set(),
    "burnin": {"gpus", "jobs.model", "servers.states"},
    "engine": {"jobs", "spool", "dispatch", "context", "settings_io"},
    "simulator": {"gpus"},
    "results": set(),
    "cli": {"control", "results", "burnin", "settings_io", "settings_text", "daemon"},
}
ALSO = {
    "engine.gpu_duty": {"servers", "gpus", "simulator.gpus"},
    "engine.gpu_desk": {"gpus"},
    "engine.gpu_records": {"gpus"},
    "engine.facade": {"control", "servers", "gpus"},
    "engine.overview": {"control", "servers", "gpus"},
    "engine.submissions": {"control"},
}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


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


def strings(function: str, keyword: str = "") -> set[str]:
    """The text given to every call of ``function``: its first argument, or the one called ``keyword``."""
    found: set[str] = set()
    for tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == function:
                values = [given.value for given in node.keywords if given.arg == keyword] if keyword else node.args[:1]
                found |= {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_stay_within_the_borders(package: str) -> None:
    broken = []
    for module, tree in MODULES.items():
        if module.startswith(f"{package}."):
            allowed = {package} | COMMON | MAY_IMPORT[package] | ALSO.get(module, set())
            broken += [f"{module} imports {name}" for name in imported(tree) if not within(name, allowed)]
    assert not broken


def test_settings_and_errors_know_nothing_of_what_uses_them() -> None:
    allowed = COMMON | {"jobs.model", "jobs.template", "prompts.structured", "settings_io", "context.opened"}
    for module in ("errors", "log", "rate", "crash_points", "settings", "settings_io", "settings_text"):
        assert [name for name in imported(MODULES[module]) if not within(name, allowed)] == []


def test_the_command_lines_import_the_daemon_only_when_it_starts() -> None:
    for module, tree in MODULES.items():
        if module.startswith("cli."):
            at_once = {name for node in ast.iter_child_nodes(tree) for name in _direct(node)}
            assert not any(within(name, {"daemon"}) for name in at_once)
            assert module == "cli.obatchd" or not any(within(name, {"daemon"}) for name in imported(tree))


def _direct(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imported(ast.Module([node], []))


def test_every_module_is_on_the_page() -> None:
    apart = ("cli.", "simulator.", "jobs.formats.")  # named as a whole
    missing = [module for module in MODULES if module not in NAMES and not module.startswith(apart)]
    assert not missing
    assert {prefix.rstrip(".") for prefix in apart} <= NAMES


def test_no_module_on_the_page_is_gone() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    named = {name for name in NAMES if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name) and name.split(".")[0] in packages}
    known = set(MODULES) | {module.rpartition(".")[0] for module in MODULES}
    assert [n for n in named if n not in known and n.rpartition(".")[0] not in known] == []


def test_the_table_of_states_is_the_one_in_the_code() -> None:
    table = section("Servers").split("| state | meaning | may become |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert {state: meaning for state, meaning, _ in rows} == {s.value: text for s, text in DESCRIPTIONS.items()}
    after = {state: set(re.findall(r"`(\w+)`", targets)) for state, _, targets in rows}
    assert after == {state.value: {target.value for target in targets} for state, targets in TRANSITIONS.items()}


def test_every_crash_point_is_on_the_page_and_no_other() -> None:
    points = strings("reach")
    assert points
    named = {name for name in NAMES if re.fullmatch(r"\w+\.(before|after)(_\w+)?", name)}
    assert named == points


def test_every_fault_is_on_the_page() -> None:
    table = section("Faults")
    codes = {code for _, _, code in faults._TEXTS} | {
        node.args[1].value
        for node in ast.walk(MODULES["dispatch.faults"])
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Fault"
        if isinstance(node.args[1], ast.Constant)
    }
    assert [code for code in codes if f"`{code}`" not in table] == []
    for kind in (faults.REQUEST, faults.SERVER, faults.CRASH, faults.LOAD, faults.ANSWER, faults.NOBODY):
        assert f"\n| `{kind}` |" in table


def test_every_message_between_main_and_worker_is_on_the_page() -> None:
    for union in (protocol.ToWorker, protocol.ToMain):
        for kind in union.__args__:
            assert f"\n| `{kind.__struct_config__.tag}` |" in section("Main and worker")


def test_every_pool_of_threads_is_on_the_page() -> None:
    for prefix in strings("ThreadPoolExecutor", "thread_name_prefix"):
        assert f"\n| {prefix} " in section("Processes")


def test_what_is_reloaded_is_on_the_page() -> None:
    text = section("Reloading")
    for leaf in settings_io.leaves():
        if settings_io.is_live(leaf.key):
            assert f"`[{leaf.section}]`" in text if leaf.section else f"`{leaf.name}`" in text


def test_the_readme_names_the_supported_versions_of_ollama() -> None:
    low, high = (".".join(map(str, version)) for version in SUPPORTED)
    assert f"{low} to {high}" in (PACKAGE.parent / "README.md").read_text("utf-8")


def test_the_libraries_on_the_page_are_those_that_are_installed() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {re.split(r"[^\w-]", dependency)[0] for dependency in project["dependencies"]}
    named = {
        word
        for row in re.findall(r"^\| ([^|]+) \|", section("Libraries"), re.MULTILINE)
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
