"""Effects of settings on attempts, on servers that misbehave, and on the end of the daemon."""

from __future__ import annotations

import signal
import time

from daemon_support import Document, prompts, wait_for
from reload_stage import Effect, Scene, Stage, becomes

FAULTS: list[Document] = [
    {"kind": "status", "marker": "refused"},
    {"kind": "runner_crash", "marker": "poison"},
    {"kind": "hang", "marker": "slow", "seconds": 0.6},
    {"kind": "hang", "marker": "stuck", "seconds": 3.0},
    {"kind": "not_done", "marker": "unfinished"},
]


def error_of(stage: Stage, prompt: str) -> tuple[str, int]:
    """Code and number of attempts of a request; empty and 0 where it succeeds."""
    job = stage.run({"prompt": prompt})
    return next(((error["code"], error["attempts"]) for error in job.errors), ("", 0))


def attempts_until_it_fails(stage: Stage) -> int:
    return error_of(stage, "refused")[1]


def attempts_of_poison(stage: Stage) -> tuple[str, int]:
    return error_of(stage, "poison")


def code_of_a_slow_answer(stage: Stage) -> str:
    return error_of(stage, "slow")[0]


def code_of_unfinished_answers(stage: Stage) -> str:
    return error_of(stage, "unfinished")[0]


def is_restarted(stage: Stage) -> bool:
    """Whether the server is restarted for faults of three requests, one after the other."""
    [before] = stage.d.servers()
    for _ in range(3):
        stage.run({"prompt": "refused"})
    restarted = becomes(lambda: stage.d.servers()[0]["restarts"] > before["restarts"], 0.4)
    wait_for(lambda: stage.d.servers()[0]["state"] == "ready", what="it is back")
    stage.d.faults(*FAULTS)
    return restarted


def code_of_a_stuck_answer(stage: Stage) -> str:
    return error_of(stage, "stuck")[0]


def answer_is_waited_for(stage: Stage) -> bool:
    """By a daemon that is told to stop while it is on its way."""
    stage.d.drop(stage.name(), [{"prompt": "slow"}])
    wait_for(lambda: stage.d.servers()[0]["in_flight"], what="it is in flight")
    ends_s = time.monotonic() + 0.5
    assert stage.d.stop(signal.SIGTERM) == 0
    waited = time.monotonic() > ends_s
    stage.d.start().ready()
    wait_for(lambda: not stage.d.status()["jobs"], what="it is over")
    stage.d.faults(*FAULTS)
    return waited


def prepare(stage: Stage) -> None:
    stage.run(*prompts(1))
    stage.d.faults(*FAULTS)


ATTEMPTS = Scene(
    {
        "dispatch.max_attempts": Effect(3, 1, attempts_until_it_fails, (3, 1)),
        "dispatch.poison_crashes": Effect(
            2, 1, attempts_of_poison, (("poison", 3), ("poison", 2)), {"dispatch.max_attempts": 20}
        ),
        "dispatch.request_timeout_s": Effect(30, 0.2, code_of_a_slow_answer, ("", "timeout")),
        "dispatch.request_total_s": Effect(
            1000, 0.1, code_of_unfinished_answers, ("incomplete", "timeout"), {"dispatch.max_attempts": 20}
        ),
        "dispatch.strikes": Effect(1000, 3, is_restarted, (False, True)),
        "dispatch.strike_window_s": Effect(1e-3, 300, is_restarted, (False, True), {"dispatch.strikes": 3}),
        "dispatch.stall_s": Effect(1000, 0.1, code_of_a_stuck_answer, ("", "poison")),
        "drain_s": Effect(30, 0, answer_is_waited_for, (True, False)),
    },
    {"dispatch.strikes": 1000, "dispatch.max_attempts": 1, "servers.starts_limit": 50},
    {"service_s": {"kind": "fixed", "value": 0.02}},
    prepare,
)
