"""``scripts/demo --slurm``: a Slurm on this machine gives a head four hosts; one is killed, one reaches its time limit.

Needs root, and installs Debian's slurmctld, slurmd and munge where they are missing. Exit status: 0 when every prompt
was answered exactly once, 1 when not, or when there can be no Slurm here, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from demo import _command
from demo_parts import SIMULATOR, Story, main
from slurm_here import NoSlurmError, SlurmHere, install

PROMPTS = 4_000
HERE_S = 90.0  # at most
# The nodes are one machine here, so each gets the stand-in GPUs and the loopback address that a machine would have.
ON_A_NODE = """\
#!/bin/bash
export OBATCHD_GPUS=simulated:2 OBATCHD_SERVERS_LISTEN=127.0.0.$((10 + ${{SLURMD_NODENAME#node}}))
export OBATCHD_SIMULATOR='{simulator}'
exec {obatchd} "$@"
"""


class SlurmStory(Story):
    """A head, a Slurm beside it, and the jobs that bring hosts."""

    def __init__(self, directory: Path, slurm: SlurmHere) -> None:
        super().__init__(directory, 'engine = "slurm"', PROMPTS, HERE_S)
        self._slurm = slurm
        self._program = directory / "obatchd-on-a-node"
        program = ON_A_NODE.format(simulator=json.dumps(SIMULATOR), obatchd=_command("obatchd"))
        self._program.write_text(program, "utf-8")
        self._program.chmod(0o755)

    def submit(self, name: str, *options: str) -> str:
        """Make a file for sbatch by obatchctl, and submit it; the job's id."""
        file = self.directory / f"{name}.sbatch"
        arguments = ["cluster", "slurm", *options, "--gres=gpu:2", "--name", name, "-o", str(file)]
        print(f"\n$ obatchctl {' '.join(arguments)}\n$ sbatch {file}", flush=True)
        here = ["--obatchd", str(self._program), "--directory", str(self.directory / "hosts")]
        self.obatchctl(*arguments, *here, shown=False)
        log = f"--output={self.directory}/{name}-%j.log"
        own = {key: value for key, value in os.environ.items() if not key.startswith("OBATCH")}
        return self._slurm.call("sbatch", "--parsable", log, str(file), environment=own)


def play(story: SlurmStory, slurm: SlurmHere) -> None:
    """All but the end of the job."""
    story.until(story.answers, "the head runs")
    story.submit("pilots", "-N", "3", "--apart", "--time", "1h")
    short = story.submit("short", "-N", "1", "--time", "2m", "--notice", "30s", "--renew")
    names = set(slurm.nodes)
    story.until(lambda: story.here() == names, f"{', '.join(sorted(names))} are here")
    limited = slurm.call("squeue", "--noheader", f"--jobs={short}", "--format=%N")
    killed = min(names - {limited})
    story.drop()
    slurm.kill_node(killed)
    story.say(f"{killed} is dead: SIGKILL to its slurmd and to all that it ran")
    story.until(lambda: killed not in story.here(), f"the head has missed {killed}")
    slurm.start_node(killed)
    story.say(f"{killed} boots again")
    story.until(lambda: killed in story.here(), f"{killed} is back: Slurm has put its job into the queue again")
    story.until(lambda: limited not in story.here(), f"{limited} has left: its time limit is near")
    story.obatchctl("hosts")
    story.until(lambda: limited in story.here(), f"{limited} is back: its job went back to the queue")


def run(directory: Path) -> int:
    print("SIMULATED: each of Slurm's four nodes is this machine, with two stand-in GPUs. Slurm itself is a real one.")
    with contextlib.ExitStack() as stack:
        try:
            install()
            slurm = SlurmHere(nodes=4, gpus=2)
            stack.callback(slurm.stop)
            slurm.start()
        except NoSlurmError as error:
            print(f"There can be no Slurm here: {error}", file=sys.stderr)
            return 1
        print(f"\nexport SLURM_CONF={slurm.environment['SLURM_CONF']}   # for squeue and sinfo in another terminal")
        story = SlurmStory(directory, slurm)
        stack.callback(story.demo.stop)
        play(story, slurm)
        wrong = story.verdict()
    print("\n".join(wrong) or "Slurm, the head and all hosts are stopped.")
    print(f"Remove everything with: rm -r {directory}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(run))
