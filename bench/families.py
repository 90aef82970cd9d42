"""Prompts that share a beginning, with a real Ollama: the daemon with families, without, and a plain client.

    eval "export $(scripts/real-ollama | tr '\\n' ' ')"; python bench/families.py [--tokens 1200 4000] [--mix ordered]
    eval "export $(scripts/real-ollama --line 0.33 | tr '\\n' ' ')"; python bench/families.py --line 0.33

Two CPU servers × 2 slots, answers of 8 tokens. Mixes: 5 questions about each of 8 documents, one document after
another (ordered) or in any order (shuffled), and as many prompts of the same length that share nothing (none). The wall
time is that from the first request to the last answer. Each run has documents of its own, so that no slot knows them;
the ways take turns. ``--memory`` gives each server of 0.30 and later so many MiB for prompts that left their slots.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import toml
import uvloop
from harness import Daemon, ask, finish, table, wait_for, workplace

SLOTS, DOCUMENTS, QUESTIONS, ANSWER_TOKENS = 2, 8, 5, 8
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


def prompts_of(mix: str, words: int, seed: int) -> list[str]:
    """The prompts of a job, in input order."""
    source = random.Random(seed)
    count = DOCUMENTS * QUESTIONS
    if mix == "none":
        return [f"{document(source, words)}\n\nQuestion {i}?" for i in range(count)]
    texts = [document(source, words) for _ in range(DOCUMENTS)]
    prompts = [
        f"{text}\n\nQuestion {i}: what about the {source.choice(WORDS)}?" for text in texts for i in range(QUESTIONS)
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


class Bench:
    """One daemon, whose setting changes between runs."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._directory, self._config = directory, config
        self._seed = 0
        self.daemon = Daemon(directory, config)

    def start(self) -> None:
        self.daemon.start()
        self.through("none", 20, "auto")  # the model is loaded on both
        self.urls = [server["url"] for server in self.daemon.status()["servers"]]

    def _set(self, families: str) -> None:
        self._config["dispatch"] = {"families": families}
        (self._directory / "obatchd.toml").write_text(toml.dumps(self._config))
        self.daemon.client.post("reload")

    def through(self, mix: str, words: int, families: str) -> tuple[float, int, int]:
        """(wall seconds, prompt tokens, those that were reused) of one job."""
        self._set(families)
        self._seed += 1
        name = f"job{self._seed}"
        drop = self._directory / f"{name}.jsonl"
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts_of(mix, words, self._seed)]
        drop.write_text("".join(lines))
        os.rename(drop, self.daemon.inbox / drop.name)
        [summary] = wait_for(
            lambda: list(self.daemon.outbox.glob(f"{name}.*/summary.json")), 3000, f"{name} is done", 0.02
        )
        facts = json.loads(summary.read_bytes())
        records = [json.loads(line) for line in summary.with_name("results.jsonl").read_text().splitlines()]
        assert facts["succeeded"] == len(lines), facts["failures"]
        wall_s = max(at_s(r["finished_at"]) for r in records) - min(at_s(r["started_at"]) for r in records)
        return wall_s, facts["prompt_tokens"], facts.get("prompt_tokens_reused_estimate", 0)

    def bare(self, mix: str, words: int) -> float:
        self._seed += 1
        options = {"num_ctx": 8192, "num_thread": 1, "num_predict": ANSWER_TOKENS}
        return uvloop.run(plain(self.urls, prompts_of(mix, words, self._seed), options))

    def words_for(self, tokens: int) -> int:
        """How many words have so many tokens."""
        body = {"model": "endless", "stream": False, "options": {"num_ctx": 8192, "num_thread": 1, "num_predict": 1}}
        text = document(random.Random(0), 400)
        found = ask(self.urls[0], "/api/chat", body | {"messages": [{"role": "user", "content": text}]})
        return round(400 * tokens / found["prompt_eval_count"])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--line", choices=["0.24", "0.33"], default="0.24")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1200, 4000])
    parser.add_argument(
        "--mix", nargs="+", choices=["ordered", "shuffled", "none"], default=["ordered", "shuffled", "none"]
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--memory", type=int, help="MiB")
    arguments = parser.parse_args()
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        raise SystemExit("name a real Ollama first: see scripts/real-ollama")
    servers: dict[str, Any] = {"ollama": program, "models_dir": models, "cpu_servers": 2, "slots": SLOTS}
    if arguments.memory is not None:
        servers["environment"] = {"LLAMA_ARG_CACHE_RAM": str(arguments.memory)}
    config = {
        "model": "endless", "max_response_tokens": ANSWER_TOKENS, "log_level": "warning", "gpus": "none",
        "outbox": {"response_files": "never"}, "servers": servers,
    }  # fmt: skip
    figures: dict[str, float] = {}
    goals: dict[str, tuple[str, float]] = {}
    with workplace() as directory:
        bench = Bench(directory, config)
        with bench.daemon:
            bench.start()
            for tokens in arguments.tokens:
                words = bench.words_for(tokens)
                for mix in arguments.mix:
                    compare(bench, mix, tokens, words, arguments.pairs, figures)
                    goals[f"{mix}_{tokens}_ratio"] = ("<=", GOALS[arguments.line][mix])
    table(f"families, Ollama {arguments.line}", [(name, f"{value:.3f}") for name, value in figures.items()])
    return finish("families", figures, goals)


def compare(bench: Bench, mix: str, tokens: int, words: int, pairs: int, figures: dict[str, float]) -> None:
    """Add the figures of one mix."""
    taken: dict[str, list[float]] = {"auto": [], "off": [], "plain": []}
    ratios, reused = [], 0.0
    for pair in range(pairs):
        for way in ("auto", "off", "plain") if pair % 2 else ("plain", "off", "auto"):
            if way == "plain":
                taken[way].append(bench.bare(mix, words))
                continue
            wall_s, all_tokens, again = bench.through(mix, words, way)
            taken[way].append(wall_s)
            if way == "auto":
                reused = again / all_tokens
        ratios.append(taken["auto"][-1] / taken["off"][-1])
        print(mix, tokens, {way: round(values[-1], 2) for way, values in taken.items()}, file=sys.stderr, flush=True)
    name = f"{mix}_{tokens}"
    figures |= {f"{name}_{way}_s": statistics.median(values) for way, values in taken.items()}
    figures[f"{name}_ratio"] = statistics.median(ratios)
    figures[f"{name}_to_plain"] = figures[f"{name}_auto_s"] / figures[f"{name}_plain_s"]
    figures[f"{name}_reused"] = reused


if __name__ == "__main__":
    sys.exit(main())
