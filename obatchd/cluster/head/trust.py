"""What a host says is a stranger's word until it was looked at: here, before anything of it reaches dispatch.

Whatever a host may get wrong by a defect or on purpose ends its session; what it offers as news, answers or figures
can be no harm to the work of others then. What its answers say cannot be judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from urllib.parse import urlsplit

import attrs
import msgspec

from obatchd.cluster.messages import Hello, HostNews, ServerNews
from obatchd.dispatch import protocol
from obatchd.dispatch.protocol import INTERACTIVE, ResultItem
from obatchd.documents.gpus import GpuEntry, Reading
from obatchd.errors import ClusterError
from obatchd.jobs.model import Outcome, Profile, place_of
from obatchd.ollama import faults
from obatchd.servers.states import ServerState
from obatchd.words import counted

MOST_SERVERS = 256  # of one host
_MOST_SLOTS = 4096
_MOST_TEXT = 64 * 1024  # characters of a reason
_MOST_GPUS = 64
_MOST_ENTRIES = 64  # of a table in news
_MOST_COUNT = 2**53
_MOST_NAME = 400  # characters
_MOST_EPOCH_S = 2e11  # within the years that have four digits
_MOST_S = 1e8  # three years
_MOST_TOKENS = 10**9
_MOST_J = 1e15
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_SLUG = re.compile(r"[a-z0-9_]{0,60}")
_INSTANT = len("2026-11-28T10:00:00.000Z")
_SUCCEEDED, _FAILED = Outcome.SUCCEEDED.value, Outcome.FAILED.value
_KINDS = frozenset(
    {faults.REQUEST, faults.SERVER, faults.CRASH, faults.LOAD, faults.ANSWER, faults.NOBODY, faults.FOREIGN}
)
_STATES = frozenset(state.value for state in ServerState)
_LEVELS, _PROBES = frozenset({"ok", "warn", "quarantine", "unknown"}), frozenset({"ok", "absent", "unknown"})
Key = tuple[int, int]


def lie(words: str) -> ClusterError:
    """The error that ends a session with a host that says ``words``."""
    return ClusterError(words, code="untrue")


def _demand(true: bool, words: str) -> None:
    if not true:
        raise lie(words)


def _seconds(value: float | None, name: str) -> None:
    true = value is None or (math.isfinite(value) and 0 <= value <= _MOST_S)
    _demand(true, f"{name} is {value}")


def _counts(values: Iterable[tuple[str, int | None]], most: int = _MOST_COUNT) -> None:
    for name, value in values:
        _demand(value is None or 0 <= value <= most, f"{name} is {value}")


def _texts(values: Iterable[tuple[str, str]], most: int = _MOST_TEXT) -> None:
    for name, value in values:
        _demand(len(value) <= most, f"{name} is too long ({len(value)})")


# News.


def check_hello(hello: Hello) -> None:
    """Raises ClusterError (``untrue``) where no host can say that of itself."""
    named = ("name", "version", "instance", "machine", "allocation")
    _texts(((f"its {name}", getattr(hello, name)) for name in named), _MOST_NAME)
    _demand(0 <= hello.clock_s <= _MOST_EPOCH_S, f"its clock tells no time: {hello.clock_s}")


def check_server(news: ServerNews) -> None:
    """Raises ClusterError (``untrue``) where news of a server cannot be."""
    where = f"server {news.id[:80]!r}: "
    _demand(bool(_ID.fullmatch(news.id)), f"{where}that is no name of a server")
    _demand(news.state in _STATES, f"{where}its state is {news.state[:40]!r}")
    _demand(1 <= news.slots <= _MOST_SLOTS, f"{where}the number of its slots is {news.slots}")
    _seconds(news.load_s, f"{where}load_s")
    _seconds(news.unloads_in_s, f"{where}unloads_in_s")
    counted = ("restarts", "pid", "loads", "model_vram_bytes")
    _counts((where + name, getattr(news, name)) for name in counted)
    _texts((where + name, getattr(news, name)) for name in ("reason", "down", "gpu_label"))
    _texts([(f"{where}version", news.version), (f"{where}base_url", news.base_url)], 200)
    _demand(urlsplit(news.base_url).scheme in ("http", "https"), f"{where}its address is {news.base_url[:80]!r}")
    for profile in (news.loaded, news.loading):
        _check_profile(profile, where)
    _demand(len(news.gpus) <= _MOST_GPUS, f"{where}it has too many GPUs ({len(news.gpus)})")
    for gpu in news.gpus:
        _texts([(f"{where}a GPU", gpu.uuid), (f"{where}a GPU", gpu.name), (f"{where}a GPU", gpu.driver)], 200)
        _counts([(f"{where}a GPU's index", gpu.index), (f"{where}a GPU's memory", gpu.memory_bytes)])
    _check_tables(news, where)
    if (slots := news.tuning) is not None:
        _texts([(f"{where}device", slots.device), (f"{where}driver", slots.driver)], 200)
        _counts([(f"{where}memory", slots.memory_bytes), (f"{where}memory in use", slots.vram_bytes)])
        right = 1 <= slots.process_slots <= _MOST_SLOTS and 1 <= slots.first_slots <= _MOST_SLOTS
        _demand(right, f"{where}the slots of its process are {slots.process_slots}")


def _check_profile(profile: Profile | None, where: str) -> None:
    if profile is not None:
        _demand(1 <= profile.context_length <= 2**40, f"{where}a context of {profile.context_length} tokens")
        _texts([(f"{where}the name of a model", profile.model)], 500)


def _check_tables(news: ServerNews, where: str) -> None:
    _demand(len(news.holds) <= _MOST_ENTRIES, f"{where}it has too many holds ({len(news.holds)})")
    _texts((f"{where}a hold", text) for entry in news.holds.items() for text in entry)
    _demand(len(news.load_options) <= _MOST_ENTRIES, f"{where}it has too many options ({len(news.load_options)})")
    for name, value in news.load_options.items():
        plain = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
        _demand(plain and len(name) <= 100 and len(str(value)) <= 500, f"{where}an option that is none")


def check_host(news: HostNews) -> None:
    """Raises ClusterError (``untrue``) where news of a host cannot be."""
    _texts(
        [
            ("the reason of its leaving", news.leaving),
            ("its store", news.share),
            *(("a notice", notice) for notice in news.notices),
        ]
    )
    for name, held in (("notices", news.notices), ("downloads", news.pulls), ("readings", news.readings)):
        _demand(len(held) <= MOST_SERVERS * 4, f"it has too many {name} ({len(held)})")
    for reading in news.readings:
        _check_reading(reading)
    cards = news.gpus.gpus
    _demand(len(cards) <= MOST_SERVERS, f"it has too many GPUs ({len(cards)})")
    _demand(len({card.uuid for card in cards}) == len(cards), "it has one GPU twice")
    _demand(news.gpus.state in _PROBES, f"the state of its GPUs is {news.gpus.state[:40]!r}")
    for card in cards:
        _check_card(card)


def _check_card(card: GpuEntry) -> None:
    where = f"GPU {card.uuid[:80]}: "
    _texts(((f"{where}{name}", getattr(card, name)) for name in ("uuid", "name", "serial", "slot")), _MOST_NAME)
    _demand(card.health in _LEVELS, f"{where}its health is {card.health[:40]!r}")
    _counts([(f"{where}index", card.index)])
    out = card.quarantine
    since = [] if out is None else [out.since, *(finding.since for finding in out.findings)]
    for instant in (card.lent_until, *since):
        _demand(_is_instant(instant or ""), f"{where}a time that is none: {(instant or '')[:40]!r}")


def _check_reading(reading: Reading) -> None:
    where = f"GPU {reading.uuid[:80]}: "
    _demand(reading.energy_j is None or 0 <= reading.energy_j <= _MOST_J, f"{where}its energy is {reading.energy_j}")
    percent = reading.utilisation_percent
    _demand(percent is None or 0 <= percent <= 100, f"{where}its utilisation is {percent}")
    _demand(math.isfinite(reading.at_s), f"{where}a reading of no time")


# What workers say.


class _Record(msgspec.Struct):
    """The parts of a result that others rely on, as :mod:`obatchd.spool.outbox` reads them. All of it is JSON."""

    id: str
    line: int
    outcome: str
    repeat: int | msgspec.UnsetType = msgspec.UNSET
    server: str = ""
    servers: list[str] = []
    attempts: int = 0
    code: str = ""
    message: str = ""
    model: str = ""
    started_at: str = ""
    finished_at: str = ""
    duration_s: float = 0.0
    beside_s: float = 0.0
    prompt_tokens: int = 0
    prompt_tokens_reused_estimate: int = 0
    response_tokens: int = 0
    truncated: bool = False
    copied_from: str = ""
    ungrounded: list[msgspec.Raw] = []


_record = msgspec.json.Decoder(_Record)


def _is_instant(text: str) -> bool:
    """Whether it is a time as records have it, of one width, so that it sorts by time; or none at all."""
    try:
        return not text or (len(text) == _INSTANT and text[-1] == "Z" and bool(datetime.fromisoformat(text)))
    except ValueError:
        return False


class _Given(msgspec.Struct):
    """A request that was offered to a worker and not answered."""

    attempt: int  # the latest
    times: int = 1  # that it was offered


@attrs.define(eq=False)
class Ledger:
    """What one worker may speak of: the requests that were offered to it, and that it has neither answered nor given
    back."""

    _server: str  # its id, as the head has it
    _given: dict[Key, _Given] = attrs.field(factory=dict, init=False)
    got: int = attrs.field(default=0, init=False)  # requests that were offered to it, in its life
    _latest: int = attrs.field(default=0, init=False)  # number of the interactive requests, which count up

    def offered(self, offer: protocol.Offer) -> None:
        """These are on their way to it."""
        self.got += len(offer.items)
        for item in offer.items:
            key = (item.job, item.line)
            if item.job == INTERACTIVE:
                self._latest = max(self._latest, item.line)
            if (given := self._given.get(key)) is None:
                self._given[key] = _Given(item.attempt)
            else:  # taken back, and offered again before the worker has said so
                given.attempt, given.times = max(given.attempt, item.attempt), given.times + 1

    def check(self, message: protocol.ToMain) -> protocol.ToMain:
        """What of it may be heard. Raises ClusterError (``untrue``) where the worker cannot say that."""
        match message:
            case protocol.Results():
                for item in message.items:
                    self._check_result(item)
            case protocol.Started():
                self._all_known(message.keys, "says it began")
            case protocol.Returned():
                for key in message.keys:
                    self._left(key, "gives back")
            case protocol.Tokens():
                return self._tokens(message)
            case protocol.Progress():
                self._check_progress(message)
            case protocol.Hello():
                _counts([("the process id of a worker", message.pid)])
        return message

    def _tokens(self, told: protocol.Tokens) -> protocol.Tokens:
        """Those of a request that it has given back, at a word of ours, may come a moment late, and are not heard."""
        for item in told.items:
            known = item.job == INTERACTIVE and item.line <= self._latest
            _demand(known, self._strange((item.job, item.line), "says tokens of"))
        return protocol.Tokens([item for item in told.items if (item.job, item.line) in self._given])

    def _all_known(self, keys: Iterable[Key], does: str) -> None:
        for key in keys:
            _demand(key in self._given, self._strange(key, does))

    def _left(self, key: Key, does: str) -> _Given:
        given = self._given.get(key)
        if given is None:
            raise lie(self._strange(key, does))
        given.times -= 1
        if not given.times:
            del self._given[key]
        return given

    def _strange(self, key: Key, does: str) -> str:
        return f"{self._server} {does} request {key[1]} of job {key[0]}, which was not offered to it"

    def _check_progress(self, told: protocol.Progress) -> None:
        _seconds(told.silent_s, f"{self._server}: silent_s")
        named = ((name, getattr(told, name)) for name in ("tokens", "active", "got", "offered", "got_then"))
        _counts((f"{self._server}: {name}", value) for name, value in named)
        true = 0 <= told.held <= self.got and told.got <= self.got and told.offered <= self.got
        _demand(true, f"{self._server} says that it got {counted(told.got, 'request')} and holds {told.held}")

    def _check_result(self, item: ResultItem) -> None:
        key = (item.job, item.line)
        given = self._left(key, "answers")
        for wrong in (*_wrong_in(item, given.attempt), *_wrong_in_record(item, self._server)):
            raise lie(f"{self._server}, request {item.line} of job {item.job}: {wrong}")


def _wrong_in(item: ResultItem, attempt: int) -> Iterator[str]:
    if not 1 <= item.attempt <= attempt:
        yield f"attempt {item.attempt} was not offered"
    # Written out, because it is done for each answer.
    if not (
        0 <= item.duration_s <= _MOST_S
        and 0 <= item.eval_s <= _MOST_S
        and 0 <= item.wait_s <= _MOST_S
        and 0 <= item.beside_s <= _MOST_S
    ):
        yield f"times that cannot be: {item.duration_s}, {item.eval_s}, {item.wait_s}, {item.beside_s}"
    if not (
        0 <= item.prompt_tokens <= _MOST_TOKENS
        and 0 <= item.response_tokens <= _MOST_TOKENS
        and 0 <= item.active <= _MOST_TOKENS
    ):
        yield f"counts that cannot be: {item.prompt_tokens}, {item.response_tokens}, {item.active}"
    if item.succeeded != (not item.fault):
        yield "both an answer and a fault, or neither"
    if item.fault and (item.fault not in _KINDS or not _SLUG.fullmatch(item.code)):
        yield f"a fault that is none: {item.fault[:40]!r}, {item.code[:60]!r}"


def _wrong_in_record(item: ResultItem, server: str) -> Iterator[str]:
    try:
        if b"\n" in item.record:
            yield "its record has several lines"
        str(item.record, "utf-8")
        record = _record.decode(item.record)
    except faults.UNREADABLE as error:
        yield f"its record is none: {error}"
        return
    place = place_of(item.line)
    if record.line != place["line"] or record.repeat != place.get("repeat", msgspec.UNSET):
        yield f"its record is of line {record.line}"
    if record.outcome != (_SUCCEEDED if item.succeeded else _FAILED):
        yield f"its record says {record.outcome[:40]!r}"
    if (record.server and record.server != server) or record.copied_from:
        yield "its record is of another server"
    if not (_is_instant(record.started_at) and _is_instant(record.finished_at)):
        yield "its record has no time"
    if record.code and not _SLUG.fullmatch(record.code):
        yield "its record has a code that is none"
    if not (
        0 <= record.duration_s <= _MOST_S
        and 0 <= record.beside_s <= _MOST_S
        and 0 <= record.prompt_tokens <= _MOST_TOKENS
        and 0 <= record.response_tokens <= _MOST_TOKENS
        and 0 <= record.prompt_tokens_reused_estimate <= _MOST_TOKENS
    ):
        yield "its record has numbers that cannot be"
