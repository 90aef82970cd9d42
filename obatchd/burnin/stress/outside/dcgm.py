"""``dcgmi diag`` of NVIDIA DCGM as a load of several GPUs at once.

Its JSON has "no published stable schema": here are read that of 1.7 to 3.x ("DCGM GPU Diagnostic", GPUs by ``gpu_id``
or ``gpu_ids``, holes in lists) and that of 4.x ("DCGM Diagnostic", entities, a severity with each error), with whatever
is said before it. A test that was skipped, or did not run, is not passed, though the program exits with 0 (issues 55
and 139 of DCGM); neither is one of memory that could not take its memory (284). An error that is only about the
configuration, such as persistence mode that is off, fails no GPU. Sources: dcgmi/Diag.cpp, dcgmi/Query.cpp and
dcgmlib/dcgm_errors.h at 72fa3fe (4.6.0), and its own test with the output of 3.1.0.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from obatchd.burnin.stress.outside import program
from obatchd.burnin.stress.outside.outcome import Outcome
from obatchd.words import counted

LEVEL = 3
USUAL_S = 15 * 60  # of level 3, says its manual
_MOST_CHARACTERS = 16 * 2**20
_LIST_S = 60.0
_ROOTS = ("DCGM Diagnostic", "DCGM GPU Diagnostic")
_OF_THE_HOST = "Deployment"  # category of tests that load nothing
_OPTIONAL = ("eud", "cpu")  # tests that need packages of their own, or are of no GPU
_NOT_THE_CARD = (1, 5)  # DCGM_ERROR_MONITOR, DCGM_ERROR_CONFIG
_NO_MEMORY = 56  # DCGM_FR_MEMORY_ALLOC
_GPU_LINE = re.compile(r"^\|\s*(\d+)\s*\|")
_UUID = re.compile(r"Device UUID:\s*(GPU-[0-9A-Fa-f-]+)")


def find() -> str:
    """The program on PATH; empty where there is none."""
    return shutil.which("dcgmi") or ""


@attrs.define(eq=False)
class Said:
    """Everything that the program says, up to a limit."""

    text: str = attrs.field(default="", init=False)

    def feed(self, text: str) -> None:
        if len(self.text) < _MOST_CHARACTERS:
            self.text += text


class Result(NamedTuple):
    """Of one test on one GPU, or on all (None)."""

    gpu: int | None
    category: str
    test: str
    status: str  # pass, fail, warn, skip; in lower case
    messages: list[str]
    severities: list[int]  # of the errors, where they are told
    errors: list[int]  # their numbers


def numbers(listing: str) -> dict[str, int]:
    """DCGM's number of each GPU by UUID, from ``dcgmi discovery --list``."""
    found: dict[str, int] = {}
    number = None
    for line in listing.splitlines():
        if (begin := _GPU_LINE.match(line)) is not None:
            number = int(begin[1])
        if (uuid := _UUID.search(line)) is not None and number is not None:
            found[uuid[1]] = number
    return found


def outcomes(text: str, gpus: Mapping[str, int]) -> dict[str, Outcome]:
    """What the output of a diagnostic says about each GPU, by UUID."""
    document = _document(text)
    if document is None:
        words = " ".join(text.split())[:200] or "nothing"
        return {uuid: Outcome("not_done", f"did not give its results, but said: {words}") for uuid in gpus}
    if trouble := next(_runtime_errors(document), ""):
        words = f"could not run: {' '.join(trouble.split())[:300]}"
        return {uuid: Outcome("not_done", words) for uuid in gpus}
    results = list(_results(document))
    return {uuid: _outcome([result for result in results if result.gpu in (None, n)]) for uuid, n in gpus.items()}


async def diagnose(path: str, uuids: Sequence[str], timeout_s: float = 4 * USUAL_S) -> dict[str, Outcome]:
    """Test GPUs, all at once, as long as that takes; what was found about each, by UUID."""
    listing, said = Said(), Said()
    try:
        await program.run([path, "discovery", "--list"], {}, listing, _LIST_S)
        known = numbers(listing.text)
        gpus = {uuid: known[uuid] for uuid in uuids if uuid in known}
        if gpus:
            chosen = ",".join(map(str, sorted(gpus.values())))
            ended = await program.run([path, "diag", "-r", str(LEVEL), "-j", "-i", chosen], {}, said, timeout_s)
    except OSError as error:
        return {uuid: Outcome("not_done", f"cannot be started: {error.strerror}") for uuid in uuids}
    words = " ".join(listing.text.split())[:200]
    found = {uuid: Outcome("not_done", f"does not list this GPU; it said: {words}") for uuid in uuids}
    if gpus and ended.timed_out:
        return found | {uuid: Outcome("not_done", "did not end in time") for uuid in gpus}
    return found | outcomes(said.text, gpus)


def _document(text: str) -> Mapping[str, Any] | None:
    """The JSON object in the output; warnings may stand before it, and something after it."""
    decoder = json.JSONDecoder()
    for place in re.finditer(r"\{", text):
        try:
            document, _ = decoder.raw_decode(text, place.start())
        except ValueError:
            continue
        if isinstance(document, dict) and _roots(document):
            return document
    return None


def _roots(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The diagnostic, or each of several."""
    several = document.get("iterations")
    documents = several if isinstance(several, list) else [document]
    roots = (one.get(name) for one in documents if isinstance(one, dict) for name in _ROOTS)
    return [root for root in roots if isinstance(root, dict)]


def _runtime_errors(document: Mapping[str, Any]) -> Iterator[str]:
    for root in _roots(document):
        if trouble := root.get("runtime_error"):
            yield str(trouble)


def _dicts(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):  # jsoncpp leaves holes in lists, which are null
        yield from (item for item in value if isinstance(item, dict))


def _results(document: Mapping[str, Any]) -> Iterator[Result]:
    for root in _roots(document):
        for category in _dicts(root.get("test_categories")):
            for test in _dicts(category.get("tests")):
                for result in _dicts(test.get("results")):
                    errors = result.get("warnings") or []
                    details = list(_dicts(errors if isinstance(errors, list) else [errors]))
                    plain = [errors] if isinstance(errors, str) else [e for e in errors if isinstance(e, str)]
                    messages = [str(error.get("warning", "")) for error in details] + plain
                    severities = [int(error.get("error_severity", 0)) for error in details if "error_severity" in error]
                    ids = [int(error.get("error_id", 0)) for error in details]
                    status = str(result.get("status", "")).lower()
                    for gpu in _gpus(result):
                        named = str(category.get("category", "")), str(test.get("name", ""))
                        yield Result(gpu, *named, status, messages, severities, ids)


def _gpus(result: Mapping[str, Any]) -> Iterator[int | None]:
    """The GPUs of a result; None for all of them."""
    if "entity_group" in result:
        if str(result["entity_group"]).upper() == "GPU":
            yield int(result["entity_id"])
        return
    told = result.get("gpu_id", result.get("gpu_ids"))
    if told is None:
        yield None
    else:
        yield from (int(number) for number in re.findall(r"\d+", str(told)))


def _outcome(results: Sequence[Result]) -> Outcome:
    tests: dict[str, str] = {}
    failed, words, skipped, passed = False, list[str](), list[str](), 0
    for result in results:
        status = _judged(result)
        tests[result.test] = status if tests.get(result.test) != "failed" else "failed"
        if status == "failed":
            failed = True
            words.append(f"{result.test}: {_short(result.messages)}")
        elif result.category != _OF_THE_HOST and not result.test.lower().startswith(_OPTIONAL):
            passed += status == "passed"
            skipped += [] if status == "passed" else [result.test]
    if failed:
        return Outcome("failed", f"failed {'; '.join(words)}", tests=tests)
    if not passed:
        why = next((_short(result.messages) for result in results if result.messages), "")
        return Outcome("not_done", f"tested nothing{f': {why}' if why else ''}", tests=tests)
    if skipped:
        names = ", ".join(dict.fromkeys(skipped))
        return Outcome("partly", f"passed {counted(passed, 'test')} and left out {names}", tests=tests)
    return Outcome("passed", f"passed {counted(passed, 'test')}", tests=tests)


def _judged(result: Result) -> str:
    """passed, failed, skipped; or note, for what is wrong with the host and not with the card."""
    if result.status in ("pass", "passed") and _NO_MEMORY not in result.errors:
        return "passed"
    if result.status in ("fail", "failed", "warn"):
        if _NO_MEMORY in result.errors:
            return "skipped"
        if result.severities and all(severity in _NOT_THE_CARD for severity in result.severities):
            return "note" if result.category == _OF_THE_HOST else "skipped"
        return "note" if result.status == "warn" else "failed"
    return "skipped"


def _short(messages: Sequence[str]) -> str:
    text = " ".join(" ".join(messages).split())
    return text[:300] if text else "it does not say why"
