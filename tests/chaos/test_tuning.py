"""The daemon is killed while a server gets other slots: nothing is lost, and the next start uses the good number."""

from __future__ import annotations

from collections.abc import Callable

from daemon_support import Daemon, wait_for
from tuning_daemon import CONFIG, CURVE, in_a_step, tuning, with_old_job


def test_a_kill_in_a_step_loses_nothing_and_the_good_number_is_used(make_daemon: Callable[..., Daemon]) -> None:
    d = make_daemon(CONFIG, simulator={**CURVE, "load_s": 0.6})
    asked = with_old_job(d, 10_000)
    in_a_step(d)
    d.kill()
    before = len(d.events("profile_loaded"))
    d.start().ready()
    wait_for(lambda: len(d.events("profile_loaded")) > before, 30, "it is loaded")
    assert " slots=8 " in d.events("profile_loaded")[before]
    assert [one["slots"] for one in tuning(d)["tried"] if one["state"] == "measured"] == [8]
    job = d.done("job.jsonl", 120)
    job.check(asked)
    assert {record["attempts"] for record in job.results} == {1}
