"""The page's own modules: few, short, and of text nodes alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from colour_support import EYES, contrast, least_distance

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


def _of_css() -> dict[str, dict[str, str]]:
    """The colours of each scheme, by name."""
    light, dark = re.findall(r":root \{(.*?)\}", (DIRECTORY / "page.css").read_text("utf-8"), re.DOTALL)
    return {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", one)) for name, one in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_of_plots_are_told_apart_by_everybody_and_from_the_ground(scheme: str) -> None:
    script = (DIRECTORY / "plot.js").read_text("utf-8")
    [found] = re.findall(rf"{scheme}: \[(.*?)\]", script)
    colours, ground = re.findall("#[0-9a-f]{6}", found), _of_css()[scheme]["ground"]
    assert len(colours) == 8
    assert {eyes: least_distance(colours, eyes) for eyes in EYES if least_distance(colours, eyes) < 30} == {}
    assert {colour: contrast(colour, ground) for colour in colours if contrast(colour, ground) < 3} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_contrast_on_all_they_stand_on(scheme: str) -> None:
    """Also in the states that no test has on the screen when axe-core looks."""
    css = _of_css()[scheme]
    grounds = {name: css[name] for name in ("ground", "raised")}
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent", "good", "warn", "bad") for ground in grounds]
    pairs += [("ink", fill) for fill in ("fill", "fill-good", "fill-bad")] + [("ground", "warn"), ("ground", "accent")]
    low = {pair: contrast(*(css[name] for name in pair)) for pair in pairs}
    assert {pair: found for pair, found in low.items() if found < 4.5} == {}
    assert contrast(css["focus"], css["ground"]) >= 3


def test_dark_and_light_have_the_same_colours_by_name() -> None:
    css = (DIRECTORY / "page.css").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    names = [set(re.findall(r"(--[a-z-]+):", one)) for one in (light, dark)]
    assert names[0] == names[1] and len(names[0]) > 10
