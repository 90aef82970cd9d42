"""A real Prometheus (of Debian's package), which scrapes daemons as docs/monitoring.md says."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import textwrap
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from daemon_support import Document, wait_for

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "monitoring.md"
RULES = ROOT / "etc" / "prometheus" / "obatchd.rules.yml"
_KEPT = Path(os.environ.get("OBATCHD_CACHE") or Path.home() / ".cache" / "obatchd") / "prometheus" / "usr" / "bin"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_KEPT}")


PROMETHEUS, PROMTOOL, NODE_EXPORTER = map(_program, ("prometheus", "promtool", "prometheus-node-exporter"))
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here (scripts/real-prometheus gets it)")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or NODE_EXPORTER is None,
    reason="prometheus and prometheus-node-exporter are not here (scripts/real-prometheus gets them)",
)


class Target(NamedTuple):
    """What is scraped: where it listens, and of a daemon a file with a key, and its certificate if it has one."""

    address: str
    key_file: Path | None = None
    certificate: Path | None = None


class Point(NamedTuple):
    """One series of an answer."""

    labels: dict[str, str]
    value: float


def page_block(holds: str) -> str:
    """The block of docs/monitoring.md that has this, without its indentation."""
    blocks = re.findall(r"(?:^    .*\n)+", PAGE.read_text("utf-8"), re.MULTILINE)
    [found] = [block for block in blocks if holds in block]
    return textwrap.dedent(found)


def configuration(targets: Sequence[Target], rules: Path = RULES, *, every_s: int = 1) -> str:
    """That of the page, for these targets, each of which is a job of its own because its key is."""
    [plain] = yaml.safe_load(page_block("scrape_configs:"))["scrape_configs"]
    [secured] = yaml.safe_load(page_block("scheme: https"))
    jobs = []
    for number, target in enumerate(targets):
        job: Document = plain if target.certificate is None else secured
        if target.certificate is not None:
            job = {**job, "tls_config": {"ca_file": str(target.certificate)}}
        if target.key_file is None:
            job = {"job_name": "node"}
        else:
            job = {**job, "authorization": {"credentials_file": str(target.key_file)}}
        where = {"job_name": f"{job['job_name']}-{number}", "static_configs": [{"targets": [target.address]}]}
        jobs.append(job | where)
    often = {"scrape_interval": f"{every_s}s", "evaluation_interval": f"{every_s}s"}
    return json.dumps({"global": often, "rule_files": [str(rules)], "scrape_configs": jobs})


class Prometheus:
    """Runs it on ``port`` with a store below ``directory``."""

    def __init__(self, directory: Path, targets: Sequence[Target], port: int, *, every_s: int = 1) -> None:
        directory.mkdir()
        self.file, self._log = directory / "prometheus.yml", directory / "log"
        self.file.write_text(configuration(targets, every_s=every_s))
        self._url = f"http://127.0.0.1:{port}"
        options = [
            f"--config.file={self.file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._process = _started([str(PROMETHEUS), *options], self._log)

    def ready(self) -> Prometheus:
        def answers() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            with contextlib.suppress(OSError):
                return bool(self._ask("status/buildinfo"))
            return False

        wait_for(answers, 30, "Prometheus answers")
        return self

    def stop(self) -> None:
        _stop(self._process)

    def _ask(self, what: str, **asked: str | float) -> Any:
        data = urllib.parse.urlencode(asked).encode() or None
        with urllib.request.urlopen(f"{self._url}/api/v1/{what}", data, timeout=20) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        assert not document.get("warnings"), document
        return document["data"]

    def query(self, expression: str) -> list[Point]:
        """What an expression is now; raises HTTPError for one that Prometheus refuses."""
        found = self._ask("query", query=expression)
        if found["resultType"] == "scalar":
            return [Point({}, float(found["result"][1]))]
        return [Point(one["metric"], float(one["value"][1])) for one in found["result"]]

    def number(self, expression: str) -> float:
        """The one value of an expression."""
        [point] = self.query(expression)
        return point.value

    def over(self, expression: str, since_s: float, until_s: float, step_s: float = 5) -> list[list[float]]:
        """The values of each series of an expression, as a panel of the board gets them, up to ``until_s``."""
        start_s = until_s - math.ceil((until_s - since_s) / step_s) * step_s  # steps count from there
        found = self._ask("query_range", query=expression, start=start_s, end=until_s, step=step_s)
        return [[float(value) for _, value in one["values"]] for one in found["result"]]

    def rules(self) -> list[Document]:
        """Every rule that is loaded, with its state and the latest error of its evaluation."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def alerts(self, state: str = "") -> set[tuple[str, str]]:
        """Alert and instance of those that are pending or firing, or only of one of the two."""
        return {
            (one["labels"]["alertname"], one["labels"].get("instance", ""))
            for one in self._ask("alerts")["alerts"]
            if state in ("", one["state"])
        }


def _started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=log.parent)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    if process.poll() is None:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def node_exporter(directory: Path, port: int) -> Iterator[Target]:
    """One that reads the files ``*.prom`` of a directory, and nothing else, meanwhile."""
    directory.mkdir()
    address = f"127.0.0.1:{port}"
    process = _started(
        [
            str(NODE_EXPORTER),
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={directory}",
            f"--web.listen-address={address}",
        ],
        directory / "log",
    )
    try:
        yield Target(address)
    finally:
        _stop(process)


@contextlib.contextmanager
def scraping(directory: Path, targets: Sequence[Target], port: int, *, every_s: int = 1) -> Iterator[Prometheus]:
    """A Prometheus that runs meanwhile."""
    found = Prometheus(directory, targets, port, every_s=every_s)
    try:
        yield found.ready()
    finally:
        found.stop()
