"""Programs of other people as loads: what they say in lines and documents that were seen, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obatchd.burnin.stress.outside import dcgm, gpu_burn, program
from obatchd.burnin.stress.outside.gpu_burn import Burn

WELL = program.Ended(0)
BEGIN = "Using compare file: compare.ptx\nBurning for 10 seconds.\nInitialized device 0 with 24217 MB of memory\n"
END = "\nKilling processes with SIGTERM (soft kill)\nFreed memory for dev 0\nUninitted cublas\ndone\n\nTested 1 GPUs:\n"
OK, FAULTY = f"{END}\tGPU 0: OK\n", f"{END}\tGPU 0: FAULTY\n"
SUMMARY = "\n\tSummary at:   Mon Jan 15 07:36:03 AM CET 2024\n\n"


def line(percent: float, products: int, errors: int = 0, note: str = "") -> str:
    """A line of progress of one GPU; gpu_burn-drv.cpp, and the issues of its repository that the tests name."""
    return f"\r{percent}%  proc'd: {products} (52502 Gflop/s)   errors: {errors} {note}  temps: 50 C "


def burnt(text: str, ended: program.Ended = WELL, pieces: int = 0) -> Any:
    burn = Burn()
    if pieces:
        for at in range(0, len(text), pieces):
            burn.feed(text[at : at + pieces])
    else:
        burn.feed(text)
    return burn.outcome(ended)


# gpu-burn.


def test_work_without_an_error_is_passed() -> None:
    outcome = burnt(BEGIN + line(20.0, 81) + SUMMARY + line(50.0, 162) + line(90.0, 405) + OK)  # issue 96
    assert (outcome.code, outcome.words) == ("passed", "computed 405 products without a wrong one")
    assert outcome.operations == 405 * 1100048498688


def test_ok_after_no_work_is_not_passed() -> None:
    outcome = burnt(BEGIN + "Results are 268435456 bytes each, thus performing 25 iterations\n" + OK)  # issue 124
    assert (outcome.code, outcome.words) == ("not_done", "computed nothing")


def test_ok_after_a_start_that_failed_is_not_passed() -> None:
    failed = 'Couldn\'t init a GPU test: Error in "load module": \n'  # issues 14 and 52
    outcome = burnt(BEGIN + failed + "read[0] error 0" + line(50.0, -1, 1641686072, " (DIED!)") + SUMMARY + OK)
    assert outcome.code == "not_done"
    assert "load module" in outcome.words
    assert outcome.wrong == 0  # what it calls errors was never set


def test_wrong_results_are_found_though_it_exits_with_0_and_its_sum_runs_over() -> None:
    outcome = burnt(BEGIN + line(100.0, 12600, -524288000, " (WARNING!)") + FAULTY)  # issue 12
    assert outcome.code == "wrong_results"
    assert outcome.wrong >= 1


def test_errors_are_counted_over_its_summaries() -> None:
    text = line(10.0, 81, 3) + line(15.0, 162, 5) + SUMMARY + line(20.0, 243, 2) + line(95.0, 400) + FAULTY
    assert burnt(BEGIN + text).wrong == 7
    assert burnt(BEGIN + line(50.0, 10) + FAULTY).code == "wrong_results"


def test_a_process_that_died_is_no_verdict_about_results() -> None:
    died = "".join(line(30.0, -1, error, " (DIED!)") for error in (-533715488, 1278531568))  # issue 69
    outcome = burnt(BEGIN + line(10.0, 81) + died + "\n\nNo clients are alive!  Aborting\n", program.Ended(123))
    assert (outcome.code, outcome.wrong) == ("not_done", 0)
    assert outcome.words.startswith("lost its process on the GPU after 81 products")
    assert burnt(BEGIN + line(10.0, 81, 4) + died, program.Ended(123)).code == "wrong_results"


def test_lines_that_go_on_without_work_are_no_work() -> None:
    outcome = burnt(BEGIN + line(20.0, 81) + "".join(line(percent, 81) for percent in range(21, 101)) + OK)
    assert outcome.code == "not_done"
    assert outcome.words == "computed nothing more after 20 % of the time, after 81 products"


@pytest.mark.parametrize("ended", [program.Ended(None, timed_out=True), program.Ended(None, True, left_behind=True)])
def test_one_that_does_not_end_is_no_verdict(ended: program.Ended) -> None:
    assert burnt(BEGIN + line(99.0, 500), ended).code == "not_done"


def test_gpus_that_were_not_asked_for_are_no_verdict() -> None:
    several = END.replace("1 GPUs", "2 GPUs") + "\tGPU 0: OK\n\tGPU 1: OK\n"
    assert burnt(BEGIN + line(99.0, 500) + several).code == "not_done"


@given(st.integers(1, 50))
def test_its_output_may_come_in_any_pieces(pieces: int) -> None:
    text = BEGIN + line(20.0, 81, 3) + SUMMARY + line(90.0, 405, 2) + FAULTY
    assert burnt(text, pieces=pieces) == burnt(text)


def test_the_same_line_again_and_again_takes_no_memory() -> None:
    burn = Burn()
    for _ in range(1000):
        burn.feed("read[0] error 0 " * 1000)
    assert len(burn._rest) <= 20_000


# DCGM. The first number of a card is not the first of ours.
GPUS = {"GPU-a": 1, "GPU-b": 0}
LISTING = """2 GPUs found.
+--------+----------------------------------------------------------------------+
| GPU ID | Device Information                                                   |
+--------+----------------------------------------------------------------------+
| 0      | Name: NVIDIA H100 80GB HBM3                                          |
|        | PCI Bus ID: 00000000:19:00.0                                         |
|        | Device UUID: GPU-bbbbbbbb-0000-0000-0000-000000000000                |
+--------+----------------------------------------------------------------------+
| 1      | Name: NVIDIA H100 80GB HBM3                                          |
|        | PCI Bus ID: 00000000:3B:00.0                                         |
|        | Device UUID: GPU-aaaaaaaa-0000-0000-0000-000000000000                |
+--------+----------------------------------------------------------------------+
0 NvSwitches found.
"""
NUMBERS = {"GPU-bbbbbbbb-0000-0000-0000-000000000000": 0, "GPU-aaaaaaaa-0000-0000-0000-000000000000": 1}


def entity(gpu: int, status: str, *warnings: dict[str, Any]) -> dict[str, Any]:
    """A result of 4.x: testing/python3/dcgm_diag_schema.json."""
    result = {"entity_group": "GPU", "entity_group_id": 1, "entity_id": gpu, "status": status}
    return {**result, "warnings": list(warnings)} if warnings else result


def warning(text: str, error_id: int, severity: int) -> dict[str, Any]:
    return {"warning": text, "error_id": error_id, "error_category": 7, "error_severity": severity}


def version4(**tests: list[dict[str, Any]]) -> str:
    software = tests.pop("software", [entity(0, "Pass"), entity(1, "Pass")])
    categories = [
        {"category": "Deployment", "tests": [part("software", software)]},
        {"category": "Hardware", "tests": [part(name, results) for name, results in tests.items()]},
    ]
    return json.dumps({"DCGM Diagnostic": {"test_categories": categories}, "metadata": {"version": "4.6.0"}})


def part(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "results": results, "test_summary": {"status": "Pass"}}


def version3(*results: dict[str, Any], name: str = "Diagnostic") -> str:
    """DCGM's issue 139, and its test of the output of 3.1.0, which has holes in its lists."""
    software = {"name": "Denylist", "results": [{"gpu_ids": "0,1", "status": "PASS"}]}
    categories = [
        {"category": "Deployment", "tests": [software, None, {"name": "Inforom", "results": [{"status": "Pass"}]}]},
        {"category": "Hardware", "tests": [None, {"name": name, "results": list(results)}]},
    ]
    return "\tWARNING: {this} is no document\n" + json.dumps(
        {"DCGM GPU Diagnostic": {"test_categories": categories, "version": "3.3.1"}}, indent=1
    )


def codes(text: str) -> dict[str, str]:
    return {uuid: outcome.code for uuid, outcome in dcgm.outcomes(text, GPUS).items()}


def test_the_numbers_of_dcgm_are_found_by_uuid() -> None:
    assert dcgm.numbers(LISTING) == NUMBERS


def test_each_gpu_has_its_own_result() -> None:
    wrong = warning("GPU 1 has uncorrectable memory errors", 43, 2)
    text = version4(
        memory=[entity(0, "Pass"), entity(1, "Fail", wrong)], diagnostic=[entity(0, "Pass"), entity(1, "Pass")]
    )
    found = dcgm.outcomes(text, GPUS)
    assert (found["GPU-b"].code, found["GPU-b"].words) == ("passed", "passed 2 tests")
    assert (found["GPU-a"].code, found["GPU-a"].tests["memory"]) == ("failed", "failed")
    assert found["GPU-a"].words == "failed memory: GPU 1 has uncorrectable memory errors"


def test_older_documents_are_read_too() -> None:
    text = version3({"gpu_id": "0", "status": "Pass"}, {"gpu_id": "1", "status": "Fail", "warnings": "it is broken"})
    assert codes(text) == {"GPU-b": "passed", "GPU-a": "failed"}
    old = version3({"gpu_ids": "0", "status": "PASS"}, {"gpu_ids": "1", "status": "FAIL", "warnings": ["it is broken"]})
    assert codes(old) == {"GPU-b": "passed", "GPU-a": "failed"}
    assert codes(version3({"gpu_ids": 0, "status": "PASS"}, {"gpu_ids": 1, "status": "PASS"})) == {
        "GPU-b": "passed",
        "GPU-a": "passed",
    }


@pytest.mark.parametrize("status", ["Skip", "SKIPPED", "Not Run", "", "Splendid"])
def test_what_was_skipped_is_not_passed(status: str) -> None:
    assert set(codes(version3({"gpu_id": "0,1", "status": status})).values()) == {"not_done"}
    text = version4(memory=[entity(0, "Pass"), entity(1, "Pass")], diagnostic=[entity(0, "Pass"), entity(1, status)])
    assert codes(text) == {"GPU-b": "passed", "GPU-a": "partly"}
    assert dcgm.outcomes(text, GPUS)["GPU-a"].words == "passed 1 test and left out diagnostic"


def test_memory_that_could_not_be_taken_was_not_tested() -> None:
    full = warning("Couldn't allocate at least 75.0% of GPU memory on GPU 1", 56, 4)
    assert codes(version4(memory=[entity(0, "Pass"), entity(1, "Pass", full)])) == {
        "GPU-b": "passed",
        "GPU-a": "not_done",
    }
    assert codes(version4(memory=[entity(0, "Pass"), entity(1, "Fail", full)])) == {
        "GPU-b": "passed",
        "GPU-a": "not_done",
    }


def test_the_configuration_of_the_host_fails_no_gpu() -> None:
    off = warning("Persistence mode for GPU 0 is disabled.", 29, 5)
    passed = [entity(0, "Pass"), entity(1, "Pass")]
    text = version4(software=[entity(0, "Fail", off), entity(1, "Fail", off)], memory=passed)
    assert codes(text) == {"GPU-b": "passed", "GPU-a": "passed"}
    pending = warning("GPU 1 has a row remapping that failed", 92, 2)
    text = version4(software=[entity(0, "Pass"), entity(1, "Fail", pending)], memory=passed)
    assert codes(text) == {"GPU-b": "passed", "GPU-a": "failed"}
    without_ecc = warning("Skipping test Memory because ECC is not enabled on GPU 1", 55, 5)
    assert codes(version4(memory=[entity(0, "Pass"), entity(1, "Fail", without_ecc)]))["GPU-a"] == "not_done"


def test_tests_that_need_other_packages_are_not_missed() -> None:
    text = version4(memory=[entity(0, "Pass"), entity(1, "Pass")], eud=[entity(0, "Skip"), entity(1, "Skip")])
    assert set(codes(text).values()) == {"passed"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing"),
        ("Error: unable to establish a connection to the specified host: localhost", "unable to establish"),
        (
            '{"DCGM Diagnostic": {"runtime_error": "Diagnostic is already running", "version": "4.6.0"}}',
            "already running",
        ),
        ('{"DCGM GPU Diagnostic": {"version": "4.2.3"}}', "tested nothing"),
        (version4(memory=[entity(0, "Pass"), entity(1, "Pass")])[:-200], "did not give its results"),
    ],
)
def test_no_results_are_no_verdict(text: str, words: str) -> None:
    for outcome in dcgm.outcomes(text, GPUS).values():
        assert outcome.code == "not_done"
        assert words in outcome.words


def test_iterations_are_read_together() -> None:
    once = json.loads(version4(memory=[entity(0, "Pass"), entity(1, "Pass")]))
    again = json.loads(version4(memory=[entity(0, "Pass"), entity(1, "Fail")]))
    assert codes(json.dumps({"iterations": [once, again], "Overall Result": "Fail"})) == {
        "GPU-b": "passed",
        "GPU-a": "failed",
    }


@given(st.text(max_size=200), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=8))
def test_strange_documents_are_no_verdict(before: str, strange: object) -> None:
    for place in ("test_categories", "runtime_error"):
        text = before + json.dumps({"DCGM Diagnostic": {place: strange}})
        assert all(outcome.code == "not_done" for outcome in dcgm.outcomes(text, GPUS).values())


# How they run.


def script(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_gpu_burn_runs_on_its_gpu_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "compare.fatbin").touch()
    path = script(
        tmp_path, "gpu_burn",
        'test -e compare.fatbin && test "$CUDA_VISIBLE_DEVICES" = GPU-a && test "$1" = 7 || exit 3\n'
        "printf '\\r20.0%%  proc%sd: 81 (1 Gflop/s)   errors: 0   temps: 1 C ' \"'\"\n"
        "printf '\\r99.0%%  proc%sd: 162 (1 Gflop/s)   errors: 0   temps: 1 C ' \"'\"\n"
        "printf '\\nTested 1 GPUs:\\n\\tGPU 0: OK\\n'",
    )  # fmt: skip
    assert (await gpu_burn.burn(path, "GPU-a", 7)).code == "passed"
    outcome = await gpu_burn.burn(path, "GPU-b", 7)
    assert (outcome.code, outcome.words) == ("not_done", "computed nothing")


async def test_a_program_that_is_not_there_is_no_verdict(tmp_path: Path) -> None:
    outcome = await gpu_burn.burn(str(tmp_path / "gpu_burn"), "GPU-a", 1)
    assert (outcome.code, outcome.words) == ("not_done", "cannot be started: No such file or directory")
    assert (await dcgm.diagnose(str(tmp_path / "dcgmi"), ["GPU-a"]))["GPU-a"].code == "not_done"


async def test_dcgmi_is_asked_for_the_gpus_by_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "listing").write_text(LISTING, "utf-8")
    (tmp_path / "found").write_text(version4(memory=[entity(1, "Pass")]), "utf-8")
    path = script(
        tmp_path, "dcgmi",
        'if test "$*" = "discovery --list"; then cat listing; fi\n'
        'if test "$*" = "diag -r 3 -j -i 1"; then cat found; fi',
    )  # fmt: skip
    (known,) = [uuid for uuid, number in NUMBERS.items() if number == 1]
    found = await dcgm.diagnose(path, [known, "GPU-unknown"])
    assert {uuid: outcome.code for uuid, outcome in found.items()} == {known: "passed", "GPU-unknown": "not_done"}
    assert "does not list this GPU" in found["GPU-unknown"].words


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("how", ["time", "cancelled"])
async def test_a_program_that_ignores_signals_is_killed_with_its_children(tmp_path: Path, how: str) -> None:
    path = script(tmp_path, "stubborn", "trap '' TERM INT\nsleep 1000 &\necho ready\nwhile :; do sleep 1000; done")
    said, before = dcgm.Said(), children()
    timeout_s = 0.5 if how == "time" else 1000.0
    running = asyncio.create_task(program.run([path], {}, said, timeout_s, grace_s=0.2))
    async with asyncio.timeout(10):
        while "ready" not in said.text:
            await asyncio.sleep(0.01)
    begun = children() - before
    assert len(begun) >= 2
    if how == "cancelled":
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        assert await running == program.Ended(None, timed_out=True)
    async with asyncio.timeout(10):
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in begun):
            await asyncio.sleep(0.01)


async def test_a_program_gets_no_secrets_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OBATCH_KEY", "secret")
    said = dcgm.Said()
    await program.run([script(tmp_path, "tell", "env")], {"GIVEN": "this"}, said, 10)
    assert "GIVEN=this" in said.text
    assert "OBATCH" not in said.text
