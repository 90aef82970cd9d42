"""The file for sbatch: what it asks of Slurm, that nothing in it is read as something else, and what its script does.

Slurm's commands are stand-ins here: small scripts that write down how they were called. ``test_slurm.py`` has the real
ones.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obatchd.cluster.slurm import HeadInJob, PilotJob, limit_s, sbatch_file
from obatchd.errors import ClusterError

JOB = PilotJob(
    "7", Path("/opt/obatchd"), Path("/home/u/x.enrolment"), Path("/home/u/hosts"), gres="gpu:4", limit_s=43200
)


def options(job: PilotJob) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in sbatch_file(job).splitlines() if line.startswith("#SBATCH ")]


def changed(**values: object) -> PilotJob:
    return msgspec.structs.replace(JOB, **values)


def test_asks_for_nodes_gpus_and_a_signal_before_the_limit():
    assert set(options(JOB)) == {
        "--job-name=obatch-hosts", "--ntasks-per-node=1", "--signal=B:USR1@120", "--requeue", "--nodes=7", "--no-kill",
        "--gres=gpu:4", "--time=0-12:00:00", "--output=obatch-hosts-%j.log", "--open-mode=append",
    }  # fmt: skip


def test_apart_is_an_array_of_jobs_of_one_node():
    made = options(changed(apart=True, partition="long", options=("--mem=64G", "--exclusive")))
    assert {"--array=1-7", "--nodes=1", "--output=obatch-hosts-%A_%a.log", "--mem=64G", "--exclusive"} < set(made)
    assert "--no-kill" not in made


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12:00:00", 43200), ("1-12", 129600), ("2-00:30", 174600), ("1-0:0:1", 86401), ("30:00", 1800), ("90m", 5400)],
)
def test_limits_are_read_as_slurm_reads_them(text, seconds):
    assert limit_s(text) == seconds


@pytest.mark.parametrize("text", ["90", "soon", "", "1:2:3:4", "-5", "1-1-1"])
def test_other_limits_are_refused(text):
    with pytest.raises(ClusterError, match="--time"):
        limit_s(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nodes": "0"}, "--nodes"),
        ({"nodes": "7-2"}, "larger"),
        ({"nodes": "2-7", "apart": True}, "--nodes 7"),
        ({"limit_s": 60.0}, "too short"),
        ({"gres": "gpu:4 --wrap=x"}, "--gres"),
        ({"gres": "gpu:4\n#SBATCH --uid=0"}, "--gres"),
        ({"partition": "a#b"}, "--partition"),
        ({"name": "a b"}, "--name"),
        ({"options": ("-c4",)}, "long options"),
        ({"options": ("--nodes=9",)}, "already"),
        ({"options": ("--comment=two words",)}, "command line of sbatch"),
        ({"directory": Path("hosts")}, "whole path"),
        ({"enrolment": Path("/x\n#SBATCH --uid=0")}, "line break"),
        ({"apart": True, "head": HeadInJob(Path("/s"), Path("/c"))}, "--with-head"),
    ],
)
def test_what_cannot_stand_in_the_file_is_refused(values, words):
    with pytest.raises(ClusterError, match=words):
        sbatch_file(changed(**values))


@given(st.text(st.characters(exclude_characters="\0\n/", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_path_arrives_as_it_is(name):
    """Of any characters; also as one word of bash, and without a further option for sbatch."""
    path = Path("/") / name
    made = sbatch_file(changed(enrolment=path, directory=path))
    assert options(changed(enrolment=path, directory=path)) == options(JOB)
    words = shlex.split(made.split("\nenrolment=", 1)[1].split("\ndirectory=", 1)[0])
    assert words == [str(path)]


def test_bash_reads_it():
    for job in (JOB, changed(apart=True), changed(head=HeadInJob(Path("/s p"), Path("/c"), Path("/it's.toml")))):
        subprocess.run(["bash", "-n"], input=sbatch_file(job).encode(), check=True)


# What the script does.

SRUN = """#!/bin/bash
echo "srun $*" >>"$CALLS"
for argument in "$@"; do case $argument in --nodelist=*) node=${argument#*=} ;; esac; done
trap 'echo "$node USR1" >>"$CALLS"; exit 0' USR1
trap 'echo "$node TERM" >>"$CALLS"; exit 143' TERM
for status in $(cat "$ENDS/$node" 2>/dev/null); do rm "$ENDS/$node"; exit "$status"; done
echo "$node up" >>"$CALLS"
while :; do /bin/sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
case $1 in
  show) printf '%s\\n' ${3//,/ } ;;
  *) echo "scontrol $*" >>"$CALLS" ;;
esac
"""
SLEEP = "#!/bin/bash\nexec /bin/sleep 0.01\n"
SQUEUE = "#!/bin/bash\necho 2026-11-29T22:06:40\n"  # in local time


class Script:
    """The script of a job on three nodes, with stand-ins for Slurm's commands."""

    def __init__(self, directory: Path, job: PilotJob) -> None:
        self.calls = directory / "calls"
        self.ends = directory / "ends"
        self.ends.mkdir()
        commands = directory / "commands"
        commands.mkdir()
        stand_ins = {"srun": SRUN, "scontrol": SCONTROL, "sleep": SLEEP, "squeue": SQUEUE}
        for name, text in stand_ins.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        self._file = directory / "job.sbatch"
        self._file.write_text(sbatch_file(job))
        self._environment = {
            "PATH": f"{commands}:{os.environ['PATH']}", "CALLS": str(self.calls), "ENDS": str(self.ends),
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "Node1,gpu.a-2,n3", "TZ": "UTC",
        }  # fmt: skip

    def start(self) -> None:
        self.calls.touch()
        self.process = subprocess.Popen(
            ["bash", self._file], env=self._environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def until(self, *words: str) -> str:
        """What was called, once all of the words are in it."""
        deadline_s = time.monotonic() + 20
        while not all(word in self.calls.read_text() for word in words):
            assert time.monotonic() < deadline_s, self.calls.read_text()
            time.sleep(0.02)
        return self.calls.read_text()

    def end(self) -> str:
        said, _ = self.process.communicate(timeout=20)
        return said


@pytest.fixture
def script(tmp_path):
    made = []

    def make(**values: object) -> Script:
        enrolment = tmp_path / "it's $(touch owned) an enrolment"
        enrolment.touch()
        made.append(Script(tmp_path, changed(enrolment=enrolment, directory=tmp_path / "a b", **values)))
        return made[-1]

    yield make
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.communicate()


def test_one_host_runs_on_each_node_under_its_own_name(script, tmp_path):
    job = script()
    job.start()
    calls = job.until("Node1 up", "gpu.a-2 up", "n3 up")
    for node, name in {"Node1": "node1", "gpu.a-2": "gpu-a-2", "n3": "n3"}.items():
        assert f"--nodelist={node} " in calls
        given = (
            f"host --until 1795990000 --enrol {tmp_path}/it's $(touch owned) an enrolment "
            f"--name {name} --dir {tmp_path}/a b/4711/{name}"
        )
        assert given in calls
    assert not (tmp_path / "owned").exists()


def test_before_the_limit_every_host_hears_usr1_and_the_job_ends_well(script):
    job = script()
    job.start()
    job.until("Node1 up", "gpu.a-2 up", "n3 up")
    job.process.send_signal(signal.SIGUSR1)
    assert "time limit is near" in job.end()
    calls = job.until("Node1 USR1", "gpu.a-2 USR1", "n3 USR1")
    assert job.process.returncode == 0
    assert "TERM" not in calls and "requeue" not in calls


def test_renewed_it_goes_back_to_the_queue_after_its_limit_only(script):
    job = script(renew=True)
    job.start()
    job.until("Node1 up", "gpu.a-2 up", "n3 up")
    job.process.send_signal(signal.SIGUSR1)
    job.end()
    assert "scontrol requeue 4711" in job.calls.read_text()


def test_a_host_that_crashes_starts_again_and_one_that_ends_by_itself_does_not(script):
    job = script(renew=True)
    (job.ends / "Node1").write_text("137")
    for node in ("gpu.a-2", "n3"):
        (job.ends / node).write_text("0")
    job.start()
    calls = job.until("Node1 up")
    assert calls.count("srun") == 4
    assert calls.count("--nodelist=Node1 ") == 2
    job.process.send_signal(signal.SIGTERM)
    job.until("Node1 up")
    assert "TERM" not in job.calls.read_text()  # Slurm itself tells its steps


def test_a_host_that_can_never_start_is_not_tried_again(script):
    job = script()
    for node in ("Node1", "gpu.a-2", "n3"):
        (job.ends / node).write_text("78")
    job.start()
    assert "cannot start" in job.end()
    assert job.process.returncode == 78
    assert job.calls.read_text().count("srun") == 3


def test_without_its_enrolment_it_says_what_to_do(script):
    job = script()
    next(path for path in job.calls.parent.iterdir() if "enrolment" in path.name).unlink()
    job.start()
    assert "obatchctl hosts enrol" in job.end()
    assert job.process.returncode == 1
