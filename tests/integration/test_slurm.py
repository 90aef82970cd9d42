"""Hosts that Slurm starts: a real Slurm on this machine, with node names of its own; see ``scripts/slurm_here.py``."""

from __future__ import annotations

import re
import stat
from collections import Counter

import pytest
import slurm_here
from daemon_support import BIN, Job, jsonl, prompts, wait_for
from port_support import free_ports
from slurm_support import HERE_S, Cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(slurm_here.why_not()), reason=slurm_here.why_not() or "it is here"),
]
SIMULATOR = {
    "models": [{"name": "tiny"}],
    "load_s": 0.2,
    "tokens_per_s": 200.0,
    "answer": {"kind": "fixed", "tokens": 40},
}
MANY = 600  # prompts, about half a minute for three servers


@pytest.fixture(scope="module")
def slurm():
    made = slurm_here.SlurmHere(nodes=4, gpus=1)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def cluster(tmp_path, make_head, slurm):
    head = make_head({"cluster": {"engine": "slurm"}}, simulator=SIMULATOR).start()
    yield Cluster(tmp_path, slurm, head, SIMULATOR)
    slurm.call("scancel", "--user=root", check=False)
    wait_for(lambda: not slurm.call("squeue", "--noheader"), 60, "no job is left")
    wait_for(lambda: set(slurm.states().values()) == {"idle"}, 60, "every node is idle")


def test_a_node_that_is_killed_costs_no_attempt_and_a_requeue_brings_the_same_hosts(cluster):
    job = cluster.submit(cluster.file("three", "-N", "3", "--time", "1h"))
    cluster.until_here("node1", "node2", "node3")
    asked = prompts(MANY)
    cluster.head.drop("many.jsonl", asked)
    wait_for(lambda: cluster.head.succeeded() > MANY / 10, 60, "work is under way")
    cluster.slurm.kill_node("node2")
    done = cluster.head.done("many.jsonl", 120)
    done.check(asked)
    assert set(Counter(result["attempts"] for result in done.results)) == {1}
    assert cluster.here() == {"node1", "node3"}
    instances = {name: (cluster.hosts_directory / job / name / "instance").read_text() for name in ("node1", "node2")}
    cluster.slurm.start_node("node2")
    cluster.slurm.call("scontrol", "requeue", job)
    cluster.until_here("node1", "node2", "node3")
    assert set(cluster.head.hosts()) == {"node1", "node2", "node3"}
    for name, instance in instances.items():
        assert (cluster.hosts_directory / job / name / "instance").read_text() == instance
    cluster.head.drop("more.jsonl", asked[:50])
    cluster.head.done("more.jsonl", 60).check(asked[:50])


def test_before_its_time_limit_a_host_drains_and_its_work_goes_elsewhere_uncounted(cluster):
    """Slurm sends the signal that is due before the limit; here when the test says so."""
    leaving = cluster.submit(cluster.file("leaving", "-N", "1", "--time", "1h"))
    cluster.until_here("node1")
    cluster.submit(cluster.file("staying", "-N", "1", "--time", "1h"))
    cluster.until_here("node1", "node2")
    asked = prompts(MANY)
    cluster.head.drop("many.jsonl", asked)
    wait_for(lambda: cluster.head.succeeded() > MANY / 10, 60, "work is under way")
    cluster.slurm.call("scancel", "--batch", "--signal=USR1", leaving)
    wait_for(lambda: cluster.here() == {"node2"}, HERE_S, "node1 has left")
    wait_for(lambda: "JobState=COMPLETED" in cluster.slurm.call("scontrol", "show", "job", leaving), 60, "it is over")
    done = cluster.head.done("many.jsonl", 120)
    done.check(asked)
    assert set(Counter(result["attempts"] for result in done.results)) == {1}


def test_no_secret_can_be_read_anywhere_but_in_its_own_file(cluster):
    file = cluster.file("secret", "-N", "2", "--time", "1h")
    enrolment = file.with_name("secret.enrolment")
    assert stat.S_IMODE(enrolment.stat().st_mode) == 0o600
    job = cluster.submit(file)
    cluster.until_here("node1", "node2")
    credentials = list(cluster.hosts_directory.glob(f"{job}/*/credential"))
    assert len(credentials) == 2
    (secret,) = re.findall(r"#([^.]+)\.", enrolment.read_text())
    secrets = [secret, *(re.findall(r"[\w-]{40,}", path.read_text())[-1] for path in credentials)]
    assert secret not in cluster.slurm.call("scontrol", "show", "job", "--details", job)
    assert secret not in cluster.slurm.call("scontrol", "write", "batch_script", job, "-")
    assert cluster.places_with(secrets, but=[enrolment, *credentials]) == []


def test_apart_each_node_comes_back_alone(cluster):
    job = cluster.submit(cluster.file("apart", "-N", "2", "--apart", "--time", "1h"))
    cluster.until_here("node1", "node2")
    cluster.slurm.call("scontrol", "requeue", f"{job}_1")
    wait_for(lambda: len(cluster.here()) == 1, 60, "one is gone")
    wait_for(lambda: len(cluster.here()) == 2, 60, "it is back")


def test_a_head_in_the_job_works_its_spool_off_and_ends_with_it(cluster, tmp_path):
    spool, file = tmp_path / "spool", tmp_path / "head.sbatch"
    (tmp_path / "head.toml").write_text('model = "tiny"\ndrain_s = 5\n[servers]\nslots = 4\nstagger_s = 0\n')
    told = cluster.head.control(
        "cluster", "slurm", "-N", "2", "--gres=gpu:1", "--time", "1h", "--with-head", "--head-spool", spool,
        "--head-config", tmp_path / "head.toml", "--obatchd", cluster.program, "--directory", cluster.hosts_directory,
        "--port", str(free_ports(1)), "-o", file,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    cluster.program.with_name("obatchctl").symlink_to(BIN / "obatchctl")
    job = cluster.submit(file)
    wait_for((spool / "inbox").is_dir, 60, "the head has its spool")
    asked = prompts(100)
    (tmp_path / "few.jsonl").write_bytes(jsonl(asked))
    (tmp_path / "few.jsonl").rename(spool / "inbox" / "few.jsonl")
    done = Job(wait_for(lambda: list(spool.glob("outbox/few.*/summary.json")), 120, "the answers are there")[0].parent)
    done.check(asked)
    assert {str(result["server"]).partition(".")[0] for result in done.results} == {"node1", "node2"}
    cluster.slurm.call("scancel", job)
    wait_for(lambda: not cluster.slurm.call("squeue", "--noheader"), 60, "it is over")
    assert "event=stopped exit_code=0" in cluster.logs()
