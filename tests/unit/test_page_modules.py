"""The page's own modules: few, short, and of text nodes alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from obatchd.front.page.files import DIRECTORY

OWN = sorted(DIRECTORY.glob("*.js"))
LINES, LINES_OF_ONE = 1500, 200


def test_the_pages_own_modules_are_short() -> None:
    lines = {path.name: path.read_text("utf-8").count("\n") for path in OWN}
    assert lines and max(lines.values()) <= LINES_OF_ONE and sum(lines.values()) <= LINES, lines


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_texts_of_others_become_text_nodes_and_nothing_is_asked_elsewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|dangerously|\beval\b|new Function|document\.cookie"
    assert not re.findall(forbidden, text)
    assert not re.findall(r"https?://(?!…)", text)
    assert not re.search(
        "localStorage", text
    )  # other ports of the host would not see it, later users of the browser would


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_a_module_is_javascript(path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("Node is not here")
    subprocess.run(["node", "--check", path], check=True, capture_output=True)


def test_dark_and_light_have_the_same_colours_by_name() -> None:
    css = (DIRECTORY / "page.css").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    names = [set(re.findall(r"(--[a-z-]+):", one)) for one in (light, dark)]
    assert names[0] == names[1] and len(names[0]) > 10
