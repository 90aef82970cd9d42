"""``scripts/demo --ray``: a Ray of four nodes on this machine gives a head four hosts; one is killed, one is drained.

Exit status: 0 when every prompt was answered exactly once, 1 when not, or when Ray does not start, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path

from demo_parts import SIMULATOR, Story, main
from ray_here import RayHere

NODES, GPUS, PROMPTS = 4, 2, 3_000
HERE_S = 180.0  # at most
KILLED, DRAINED = 2, 4


def play(story: Story, ray: RayHere) -> None:
    """All but the end of the job."""
    whole = Counter({name: GPUS for name in ray.names()})
    killed, drained = ray.name(KILLED), ray.name(DRAINED)
    story.until(story.answers, "the head runs")
    story.until(lambda: story.ready() == whole, f"every GPU of {', '.join(ray.names())} has a server")
    story.drop()
    ray.kill_raylet(KILLED)
    story.say(f"the raylet of {killed} is dead (SIGKILL), as when its machine fails")
    story.until(lambda: killed not in story.here(), f"the head has missed {killed}; others do its work")
    ray.drain(DRAINED)
    story.say(f"Ray drains {drained}, as its autoscaler does before it takes a machine away")
    story.until(lambda: drained not in story.here(), f"{drained} has given back its work and left")
    story.obatchctl("hosts")
    ray.start_node(KILLED)
    story.say(f"ray start on {killed}")
    story.until(lambda: story.ready()[killed] == GPUS, f"{killed} is back, by itself")


def run(directory: Path) -> int:
    print(f"SIMULATED: each of Ray's {NODES} nodes is this machine, with two stand-in GPUs. Ray itself is a real one.")
    with contextlib.ExitStack() as stack:
        ray = RayHere(NODES, SIMULATOR)
        stack.callback(ray.clean)
        print(f"Ray starts; {NODES} times ray start takes half a minute.", flush=True)
        ray.start()
        print(f"\nray status --address {ray.address}   # in another terminal, with .venv-ray/bin in PATH", flush=True)
        story = Story(directory, f'engine = "ray"\naddress = "{ray.address}"', PROMPTS, HERE_S)
        stack.callback(story.demo.stop)
        play(story, ray)
        wrong = story.verdict()
    print("\n".join(wrong) or "The head, all hosts and Ray are stopped.")
    print(f"Remove everything with: rm -r {directory}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(run))
