"""A release says one version everywhere, names the Pythons it was tried on, and takes all news into the changelog."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

from obatchd import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_version_stands_in_one_place_and_all_others_agree() -> None:
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    [version] = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    [released] = re.findall(r"^date-released: (\S+)$", citation, re.MULTILINE)
    newest = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)[0]
    assert (version, newest) == (__version__, f"{__version__} ({released})")


def test_every_python_that_was_tried_is_named_where_people_look() -> None:
    tried = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert tried[0] == PROJECT["requires-python"].removeprefix(">=")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"Python {', '.join(tried[:-1])} or {tried[-1]}" in " ".join(readme.split())
    assert f"versions={','.join(tried)}\n" in (ROOT / "scripts" / "build-package").read_text("utf-8")


def test_a_release_moves_all_news_into_the_changelog_in_one_order(tmp_path: Path) -> None:
    move = runpy.run_path(str(ROOT / "scripts" / "changelog.py"))["move"]
    changelog, news = tmp_path / "CHANGELOG.md", tmp_path / "changelog.d"
    changelog.write_text("# Changelog\n\n## 0.1.0 (2026-01-01)\n\n* Old.\n")
    news.mkdir()
    for name, text in (("README", "# News\n"), ("b-second", "* Second,\n  wrapped.\n"), ("a-first", "* First.")):
        (news / f"{name}.md").write_text(text)
    assert move(changelog, news, "0.2.0", "2026-02-02") == 2
    first = "# Changelog\n\n## 0.2.0 (2026-02-02)\n\n* First.\n* Second,\n  wrapped.\n\n"
    assert changelog.read_text() == first + "## 0.1.0 (2026-01-01)\n\n* Old.\n"
    assert [path.name for path in news.iterdir()] == ["README.md"]

    changelog.write_text(changelog.read_text().replace("* First.", "### Drops\n\n* First."))
    (news / "late.md").write_text("* Late.\n")
    assert move(changelog, news, "0.2.0", "2026-02-03") == 1
    assert "## 0.2.0 (2026-02-03)\n\n* Late.\n\n### Drops\n\n* First.\n" in changelog.read_text()
    assert move(changelog, news, "0.2.0", "2026-02-03") == 0
