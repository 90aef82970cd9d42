"""Prompts that share a beginning, with a real Ollama: the daemon with families, without, and a plain client.

    eval "export $(scripts/real-ollama | tr '\\n' ' ')"; python bench/families.py [--tokens 1200 4000] [--mix ordered]
    eval "export $(scripts/real-ollama --line 0.33 | tr '\\n' ' ')"; python bench/families.py --line 0.33

Two CPU servers × 2 slots, answers of 8 tokens. Mixes: 5 questions about each of 8 documents, one document after
another (ordered) or in any order (shuffled), and 12 prompts of the same length that share nothing (none); on request
40 questions about 12 documents, 1 to 8 about each (uneven; at least 12 requests are cold, no goal). ``--documents`` has
longer jobs: what is lost at their end weighs less. The wall
time is that from the first request to the last answer. Each run has documents of its own, so that no slot knows them;
the ways take turns, up to ``--pairs`` times while ``--minutes`` for each number of tokens last, once in any case.
``--plain`` adds the plain client. ``--environment`` sets variables of the servers, e.g. LLAMA_ARG_CACHE_RAM=512.

Timings on a busy machine say little. So each run also counts, from the logs of the servers, the requests that are
*cold*: those for which a server computed more than half of the prompt (8 of 40 are the least), and all computed tokens.
``begun`` counts each document once for each server that had questions about it: what ``cold`` is above that, slots lost
that had a document; what ``begun`` is above 8, documents went to a second server, at the end of the job as a rule.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import toml
import uvloop
from harness import Daemon, ask, finish, table, wait_for, workplace

SLOTS, DOCUMENTS, QUESTIONS, ANSWER_TOKENS = 2, 8, 5, 8
UNRELATED = 12  # prompts of the mix without families
UNEVEN = (2, 1, 3, 2, 5, 1, 2, 3, 8, 2, 5, 6)  # questions about each document of that mix
MIXES = ["ordered", "shuffled", "none"]
# What a server says of each prompt: 0.24 with OLLAMA_DEBUG the parts that a slot has and has not, llama-server always.
COMPUTED = {
    "0.24": re.compile(r'"loading cache slot" .*prompt=(?P<all>\d+) used=\d+ remaining=(?P<computed>\d+)'),
    "0.33": re.compile(r"prompt eval time = .* (?P<computed>\d+) tokens \("),
}
GOALS = {
    "0.24": {"ordered": 0.35, "shuffled": 0.5, "none": 1.02},
    "0.33": {"ordered": 0.5, "shuffled": 0.6, "none": 1.02},
}
WORDS = (
    "the",
    "a",
    "report",
    "on",
    "river",
    "city",
    "council",
    "said",
    "water",
    "bridge",
    "winter",
    "market",
    "people",
)


def document(source: random.Random, words: int) -> str:
    return " ".join(source.choice(WORDS) for _ in range(words))


def prompts_of(mix: str, words: int, seed: int, documents: int) -> list[str]:
    """The prompts of a job, in input order."""
    source = random.Random(seed)
    if mix == "none":
        return [f"{document(source, words)}\n\nQuestion {i}?" for i in range(UNRELATED)]
    questions = UNEVEN if mix == "uneven" else [QUESTIONS] * documents
    texts = [document(source, words) for _ in questions]
    prompts = [
        f"{text}\n\nQuestion {i}: what about the {source.choice(WORDS)}?"
        for text, count in zip(texts, questions, strict=True)
        for i in range(count)
    ]
    if mix == "shuffled":
        source.shuffle(prompts)
    return prompts


async def plain(urls: list[str], prompts: list[str], options: dict[str, int]) -> float:
    """Seconds that a client takes which keeps every slot full, in input order."""
    work = iter(prompts)

    async def slot(session: aiohttp.ClientSession, url: str) -> None:
        for prompt in work:
            message = {"role": "user", "content": prompt}
            body = {"model": "endless", "messages": [message], "options": options, "keep_alive": -1}
            async with session.post(f"{url}/api/chat", json=body) as response:
                await response.read()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        begun_s = time.perf_counter()
        await asyncio.gather(*(slot(session, url) for _ in range(SLOTS) for url in urls))
        return time.perf_counter() - begun_s


def at_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class Run(NamedTuple):
    """One job, or what the plain client did."""

    wall_s: float
    cold: int
    computed: int  # tokens
    begun: int = 0  # documents, each for every server that had it


class Logs:
    """What the servers say that they computed."""

    def __init__(self, directory: Path, line: str) -> None:
        self._directory, self._told = directory, COMPUTED[line]
        self._read: dict[Path, int] = {}

    def new(self) -> list[int]:
        """Computed tokens of each prompt since the last call. Logs are cut at 10 MB, after some thousands."""
        found: list[int] = []
        for path in self._directory.glob("*.log"):
            text = path.read_bytes()
            start = self._read.get(path, 0)
            self._read[path] = len(text)
            lines = text[start if start <= len(text) else 0 :].decode(errors="replace").splitlines()
            found += [int(told["computed"]) for line in lines if (told := self._told.search(line))]
        return found


class Bench:
    """One daemon, whose setting changes between runs."""

    def __init__(self, directory: Path, config: dict[str, Any], line: str, documents: int) -> None:
        self._directory, self._config, self._documents = directory, config, documents
        self._seed = 0
        self.daemon = Daemon(directory, config)
        self._logs = Logs(self.daemon.spool / "work" / "logs", line)

    def start(self) -> None:
        self.daemon.start()
        self.through("none", 20, "auto")  # the model is loaded on both
        self.urls = [server["url"] for server in self.daemon.status()["servers"]]

    def _set(self, families: str) -> None:
        self._config["dispatch"] = {"families": families}
        (self._directory / "obatchd.toml").write_text(toml.dumps(self._config))
        self.daemon.client.post("reload")

    def through(self, mix: str, words: int, families: str) -> Run:
        """One job."""
        self._set(families)
        self._logs.new()
        self._seed += 1
        name = f"job{self._seed}"
        drop = self._directory / f"{name}.jsonl"
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in self._prompts(mix, words)]
        drop.write_text("".join(lines))
        os.rename(drop, self.daemon.inbox / drop.name)
        [summary] = wait_for(
            lambda: list(self.daemon.outbox.glob(f"{name}.*/summary.json")), 3000, f"{name} is done", 0.02
        )
        facts = json.loads(summary.read_bytes())
        records = [json.loads(line) for line in summary.with_name("results.jsonl").read_text().splitlines()]
        assert facts["succeeded"] == len(lines), facts["failures"]
        wall_s = max(at_s(r["finished_at"]) for r in records) - min(at_s(r["started_at"]) for r in records)
        run = self._counted(wall_s, facts["prompt_tokens"] / len(lines))
        return run._replace(begun=len({(r["server"], r["prompt"].partition("\n\n")[0]) for r in records}))

    def bare(self, mix: str, words: int, tokens: int) -> Run:
        self._seed += 1
        self._logs.new()
        options = {"num_ctx": 8192, "num_thread": 1, "num_predict": ANSWER_TOKENS}
        return self._counted(uvloop.run(plain(self.urls, self._prompts(mix, words), options)), tokens)

    def _prompts(self, mix: str, words: int) -> list[str]:
        return prompts_of(mix, words, self._seed, self._documents)

    def _counted(self, wall_s: float, tokens: float) -> Run:
        """``tokens`` are those of one prompt."""
        computed = self._logs.new()
        return Run(wall_s, sum(2 * count > tokens for count in computed), sum(computed))

    def words_for(self, tokens: int) -> int:
        """How many words have so many tokens."""
        body = {"model": "endless", "stream": False, "options": {"num_ctx": 8192, "num_thread": 1, "num_predict": 1}}
        text = document(random.Random(0), 400)
        found = ask(self.urls[0], "/api/chat", body | {"messages": [{"role": "user", "content": text}]})
        return round(400 * tokens / int(found["prompt_eval_count"]))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--line", choices=["0.24", "0.33"], default="0.24")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1200, 4000])
    parser.add_argument("--mix", nargs="+", choices=[*MIXES, "uneven"], default=MIXES)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=4.5)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--environment", nargs="+", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        raise SystemExit("name a real Ollama first: see scripts/real-ollama")
    servers: dict[str, Any] = {"ollama": program, "models_dir": models, "cpu_servers": 2, "slots": SLOTS}
    servers["environment"] = {"OLLAMA_DEBUG": "1"} | dict(pair.split("=", 1) for pair in arguments.environment)
    config = {
        "model": "endless", "max_response_tokens": ANSWER_TOKENS, "log_level": "warning", "gpus": "none",
        "outbox": {"response_files": "never"}, "servers": servers,
    }  # fmt: skip
    figures: dict[str, float] = {}
    goals: dict[str, tuple[str, float]] = {}
    ways = ["auto", "off", *(["plain"] if arguments.plain else [])]
    with workplace() as directory:
        bench = Bench(directory, config, arguments.line, arguments.documents)
        with bench.daemon:
            bench.start()
            for tokens in arguments.tokens:
                runs = measured(bench, tokens, arguments.mix, ways, arguments.pairs, 60 * arguments.minutes)
                for mix in arguments.mix:
                    figures |= figures_of(f"{mix}_{tokens}", runs[mix])
                    if mix in MIXES:
                        goals[f"{mix}_{tokens}_ratio"] = ("<=", GOALS[arguments.line][mix])
    table(f"families, Ollama {arguments.line}", [(name, f"{value:.3f}") for name, value in figures.items()])
    return finish("families", figures, goals)


def measured(
    bench: Bench, tokens: int, mixes: list[str], ways: list[str], pairs: int, limit_s: float
) -> dict[str, dict[str, list[Run]]]:
    """The runs of each mix and way; no further round is begun that would not end in ``limit_s``."""
    words = bench.words_for(tokens)
    runs: dict[str, dict[str, list[Run]]] = {mix: {way: [] for way in ways} for mix in mixes}
    begun_s = time.perf_counter()
    for pair in range(pairs):
        for mix in mixes:
            for way in ways if pair % 2 else reversed(ways):
                run = bench.bare(mix, words, tokens) if way == "plain" else bench.through(mix, words, way)
                runs[mix][way].append(run)
                print(
                    mix,
                    tokens,
                    way,
                    f"{run.wall_s:.2f} s, {run.cold} cold, {run.begun} begun",
                    file=sys.stderr,
                    flush=True,
                )
        spent_s = time.perf_counter() - begun_s
        if spent_s * (pair + 2) / (pair + 1) > limit_s:
            break
    return runs


def figures_of(name: str, runs: dict[str, list[Run]]) -> dict[str, float]:
    """The figures of one mix: medians, and the median of the ratios of the pairs."""
    figures: dict[str, float] = {}
    for way, of_way in runs.items():
        figures[f"{name}_{way}_s"] = statistics.median(run.wall_s for run in of_way)
        figures[f"{name}_{way}_cold"] = statistics.mean(run.cold for run in of_way)
        if way != "plain":
            figures[f"{name}_{way}_begun"] = statistics.mean(run.begun for run in of_way)
        figures[f"{name}_{way}_computed"] = statistics.mean(run.computed for run in of_way)
    pairs = list(zip(runs["auto"], runs["off"], strict=True))
    figures[f"{name}_ratio"] = statistics.median(auto.wall_s / off.wall_s for auto, off in pairs)
    figures[f"{name}_computed_ratio"] = figures[f"{name}_auto_computed"] / figures[f"{name}_off_computed"]
    if "plain" in runs:
        figures[f"{name}_to_plain"] = figures[f"{name}_auto_s"] / figures[f"{name}_plain_s"]
    return figures


if __name__ == "__main__":
    sys.exit(main())
