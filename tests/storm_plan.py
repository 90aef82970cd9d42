"""What a storm will do, fixed by its seed: which drops come, what befalls which request, and what is killed when.

Only the plan is fixed. When a process dies is told in steps of the work ("after 12 more answers", "at the third
commit", "between the rename of a drop and its acceptance"), never in seconds, and so does not depend on the machine.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]

# Faults of stand-in servers, by a marker in the prompt: a request that meets one succeeds in the end.
PASSING: dict[str, tuple[float, Document]] = {
    "~status~": (0.015, {"kind": "status", "probability": 0.5}),
    "~busy~": (0.015, {"kind": "busy", "probability": 0.5}),
    "~cut~": (0.010, {"kind": "cut", "probability": 0.5, "after_tokens": 3}),
    "~not-done~": (0.010, {"kind": "not_done", "probability": 0.5}),
    "~no-reason~": (0.005, {"kind": "no_reason", "probability": 0.5}),
    "~slow~": (0.005, {"kind": "slow", "factor": 5}),
    "~runner-crash~": (0.003, {"kind": "runner_crash", "probability": 0.5, "after_tokens": 3}),
    "~crash~": (0.002, {"kind": "crash", "probability": 0.5, "after_tokens": 3}),
    "~hang~": (0.001, {"kind": "hang", "probability": 0.5, "after_tokens": 3}),
    "~leak~": (0.001, {"kind": "leak", "probability": 0.5}),
}
POISON, EMPTY, SCHEMA = "~poison~", "~empty~", "~schema~"
# Of a server that the storm itself starts, behind a proxy; what would end it for good is left out.
LASTING: list[Document] = [
    {"marker": POISON, "kind": "runner_crash"},
    {"marker": SCHEMA, "kind": "runner_crash", "schema": True},
    {"marker": EMPTY, "kind": "empty"},
]
FAULTS: list[Document] = [
    *({"marker": marker, **fault} for marker, (_, fault) in PASSING.items()),
    *LASTING,
    {"kind": "load_failure", "probability": 0.05},
]
CONTEXT_TOKENS = 4096
_SCHEMA: Document = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
# A drop's requests with a schema that crashes servers; some of them crash so often before that is found out that they
# fail by themselves.
_SCHEMA_CODES = frozenset({"format_crashes", "poison"})
_SCHEMA_REQUESTS = 20

# Requests that have to fail: share, fields beside id and prompt, codes that are right.
_FAILING: tuple[tuple[float, Document, frozenset[str]], ...] = (
    (0.003, {"format": "nonsense"}, frozenset({"wrong_type", "invalid_format"})),
    (0.002, {"marker": EMPTY}, frozenset({"empty_response"})),
    (0.001, {"words": CONTEXT_TOKENS + 1}, frozenset({"context_exceeded"})),
    (0.001, {"model": "missing-here"}, frozenset({"model_not_found", "pull_failed"})),
)
_BAD_LINES: tuple[tuple[bytes, str], ...] = (
    (b'{"id": "torn", "prompt": "what is', "bad_json"),
    (b'{"id": "\xff\xfe", "prompt": "what is it?"}', "invalid_utf8"),
    (b'{"id": "nothing-asked"}', "missing_prompt"),
)
_SIZES = (1, 1, 1, 2, 3, 5, 10, 20, 30, 60, 100, 200, 400)

INSTANTS = (
    "claim.after_intents",
    "claim.after_mkdir",
    "claim.after_rename",
    "claim.after_flush",
    "claim.after_accept",
    "submit.after_accept",
    "files.after_write",
    "batches.after_accept",
    "commit.before",
    "commit.after",
    "publish.after_whole",
    "publish.after_flush",
    "publish.after_summary",
    "publish.after_done",
)


@dataclass(frozen=True)
class Asked:
    """One request of a drop: its prompt if it has to succeed, else the codes of which it may fail."""

    id: str
    line: int
    prompt: str
    codes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Drop:
    """What somebody hands over, and what has to come of it."""

    name: str
    content: bytes | dict[str, bytes]
    asked: list[Asked]
    submitted: bool = False  # over the socket instead of renamed into the inbox
    refused: bool = False  # has to end in failed/
    slow: bool = False  # its writer stalls in the middle


@dataclass(frozen=True)
class Batch:
    """What a program makes over HTTP."""

    name: str
    lines: int
    model: str
    cancelled: bool  # as soon as it is made


@dataclass(frozen=True)
class Strike:
    """One kill of a part: what, at which of the servers (as a fraction of them), after how many more answers."""

    what: str
    where: float
    gap: int


@dataclass(frozen=True)
class Life:
    """One life of the daemon: the kills of its parts, and how it dies itself.

    ``death`` is an instant with its pass, ``start`` with the number of log lines written by then, ``answers`` or
    ``preempted`` (with all of its processes) with the number of more answers by then, or empty: it lives until
    everything is done.
    """

    strikes: list[Strike]
    death: str
    count: int = 0


@dataclass
class Plan:
    """A whole storm."""

    seed: int
    drops: list[Drop]
    lives: list[Life]
    batches: list[Batch]
    requests: int = field(init=False)  # of drops
    kills: int = field(init=False)

    def __post_init__(self) -> None:
        self.requests = sum(len(drop.asked) for drop in self.drops)
        self.kills = sum(len(life.strikes) + bool(life.death) for life in self.lives)


def make_plan(seed: int, kills: int, requests: int, *, real: bool = False) -> Plan:
    """The storm of this seed. ``real`` leaves out what only stand-in servers and GPUs can do."""
    source = random.Random(seed)
    drops = _drops(random.Random(source.random()), requests, real=real)
    lives = _lives(random.Random(source.random()), kills, max(2, 2 * requests // kills), real=real)
    return Plan(seed, drops, lives, _batches(random.Random(source.random()), max(4, kills // 8), real=real))


def _batches(source: random.Random, count: int, *, real: bool) -> list[Batch]:
    sizes = (1, 2, 5) if real else (1, 3, 10, 30, 100)
    return [Batch(f"b{n:04d}", source.choice(sizes), "tiny", source.random() < 0.4) for n in range(count)]


# Drops.


def _drops(source: random.Random, requests: int, *, real: bool) -> list[Drop]:
    drops: list[Drop] = []
    # A poisonous request brings down its server again and again; a few of them are enough.
    poison_left = 0 if real else max(1, requests // 5000)
    if not real:
        drops.append(_with_a_schema_that_crashes(source))
    while (left := requests - sum(len(drop.asked) for drop in drops)) > 0:
        name = f"d{len(drops):04d}"
        if source.random() < 0.02:
            drops.append(Drop(f"{name}.json", b"This is no JSON at all.\n", [], refused=True))
            continue
        count = min(left, max(1, requests // 8), source.choice(_SIZES))
        model = {"model": "simulated"} if not real and source.random() < 0.05 else {}
        asked, entries = _requests(source, name, count, model, real=real)
        if poison_left and count >= 10:
            poison_left -= 1
            place = source.randrange(count)
            asked[place], entries[place] = _request(f"{name}-poison", place + 1, POISON, frozenset({"poison"}), model)
        make = source.choice(_FORMATS) if count > 1 else source.choice((*_FORMATS, _single))
        drop_name, content, asked = make(source, name, asked, entries)
        fate = source.random()
        slow = isinstance(content, bytes) and 0.1 <= fate < 0.2
        drops.append(Drop(drop_name, content, asked, submitted=fate < 0.1, slow=slow))
    return drops


def _with_a_schema_that_crashes(source: random.Random) -> Drop:
    """Its requests fail, those beside them in the same file do not."""
    made: list[tuple[Asked, bytes]] = []
    for line in range(1, _SCHEMA_REQUESTS + 1):
        bad = source.random() < 0.8
        more = {"format": _SCHEMA} if bad else {}
        codes = _SCHEMA_CODES if bad else frozenset[str]()
        made.append(_request(f"schema-{line}", line, SCHEMA if bad else "", codes, more))
    return Drop("schema.jsonl", b"".join(entry + b"\n" for _, entry in made), [asked for asked, _ in made])


def _request(
    request_id: str, line: int, marker: str, codes: frozenset[str], more: Document, words: int = 0
) -> tuple[Asked, bytes]:
    prompt = f"{request_id}: what is {line}? {marker}{' word' * words}"
    return Asked(request_id, line, prompt, codes), json.dumps({"id": request_id, "prompt": prompt, **more}).encode()


def _requests(
    source: random.Random, name: str, count: int, more: Document, *, real: bool
) -> tuple[list[Asked], list[bytes]]:
    asked: list[Asked] = []
    entries: list[bytes] = []
    for line in range(1, count + 1):
        marker, codes, fields, words = "", frozenset[str](), dict(more), 0
        fate = 1.0 if real else source.random()
        for share, wrong, right in _FAILING:
            if 0 <= fate < share:
                fields |= {key: value for key, value in wrong.items() if key not in ("marker", "words")}
                marker, words, codes = wrong.get("marker", ""), wrong.get("words", 0), right
            fate -= share
        for text, (share, _) in PASSING.items():
            if 0 <= fate < share:
                marker = text
            fate -= share
        if real:
            fields |= {"max_response_tokens": source.randint(4, 24)}
        request, entry = _request(f"{name}-{line}", line, marker, codes, fields, words)
        asked.append(request)
        entries.append(entry)
    return asked, entries


def _lines(
    source: random.Random, name: str, asked: list[Asked], entries: list[bytes]
) -> tuple[str, bytes, list[Asked]]:
    """JSON Lines; in some of them a line is no request, and in some an id is used twice."""
    asked, entries = list(asked), list(entries)
    if source.random() < 0.3:
        raw, code = source.choice(_BAD_LINES)
        entries.append(raw)
        asked.append(Asked("", len(entries), "", frozenset({code})))
    if source.random() < 0.1:
        entries.append(entries[0])
        asked.append(Asked(asked[0].id, len(entries), "", frozenset({"duplicate_id"})))
    return f"{name}.jsonl", b"".join(entry + b"\n" for entry in entries), asked


def _packed_lines(
    source: random.Random, name: str, asked: list[Asked], entries: list[bytes]
) -> tuple[str, bytes, list[Asked]]:
    name, content, asked = _lines(source, name, asked, entries)
    return f"{name}.gz", gzip.compress(content, 1, mtime=0), asked


def _array(_: random.Random, name: str, asked: list[Asked], entries: list[bytes]) -> tuple[str, bytes, list[Asked]]:
    return f"{name}.json", b"[\n" + b",\n".join(entries) + b"\n]\n", asked


def _packed_array(
    source: random.Random, name: str, asked: list[Asked], entries: list[bytes]
) -> tuple[str, bytes, list[Asked]]:
    return f"{name}.json.gz", gzip.compress(_array(source, name, asked, entries)[1], 1, mtime=0), asked


def _folder(
    _: random.Random, name: str, asked: list[Asked], entries: list[bytes]
) -> tuple[str, dict[str, bytes], list[Asked]]:
    names = [f"{request.line:05d}.json" for request in asked]
    return name, dict(zip(names, entries, strict=True)), asked


def _single(_: random.Random, name: str, asked: list[Asked], entries: list[bytes]) -> tuple[str, bytes, list[Asked]]:
    return f"{name}.json", entries[0], asked


_Maker = Callable[[random.Random, str, list[Asked], list[bytes]], tuple[str, bytes | dict[str, bytes], list[Asked]]]
_FORMATS: Sequence[_Maker] = (_lines, _packed_lines, _array, _packed_array, _folder)

# Kills.

_PARTS = {
    "worker": 27, "serve": 24, "runner": 27, "group": 8, "probe": 6, "responses": 5, "forkserver": 3, "front": 8,
}  # fmt: skip
_NOT_REAL = ("probe", "front")
_DAEMON_SHARE = 0.17


def _lives(source: random.Random, kills: int, most_gap: int, *, real: bool) -> list[Life]:
    deaths = max(3, round(kills * _DAEMON_SHARE))
    parts = {name: weight for name, weight in _PARTS.items() if not (real and name in _NOT_REAL)}
    # Each part is killed at least once in every storm; the last life, in which the daemon is measured, has many.
    strikes = [*parts, *source.choices(list(parts), list(parts.values()), k=max(0, kills - deaths - len(parts)))]
    source.shuffle(strikes)
    last = len(strikes) // 4
    shares = [0] * deaths
    for _ in range(len(strikes) - last):
        shares[source.randrange(deaths)] += 1
    instants = _shuffled_instants(source, deaths)
    lives: list[Life] = []
    for number, share in enumerate([*shares, last]):
        taken, strikes = strikes[:share], strikes[share:]
        planned = [Strike(what, source.random(), source.randint(0, most_gap)) for what in taken]
        if number == deaths:
            lives.append(Life(planned, ""))
        elif number % 5 in (1, 3):
            instant = instants[number % len(instants)]
            lives.append(Life(planned, instant, source.randint(1, 12 if instant.startswith("commit") else 1)))
        elif number % 5 == 2:
            lives.append(Life([], "start", source.randint(1, 30)))
            strikes = taken + strikes  # they come in the lives that follow
        else:
            death = "preempted" if number % 5 == 4 else "answers"
            lives.append(Life(planned, death, source.randint(0, most_gap)))
    if strikes:
        rest = [Strike(what, source.random(), source.randint(0, most_gap)) for what in strikes]
        lives[-1] = Life([*lives[-1].strikes, *rest], "")
    return lives


def _shuffled_instants(source: random.Random, count: int) -> list[str]:
    instants: list[str] = []
    while len(instants) < count:
        instants += source.sample(INSTANTS, len(INSTANTS))
    return instants
