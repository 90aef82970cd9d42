"""What a server writes: read at the end, followed over a rotation, quoted when it ends."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from obatchd.servers.logs import LogDrain, read_log


class Unread:
    """Implements :class:`obatchd.servers.logs.LineListener`."""

    def line(self, line: str) -> None:
        pass


async def test_the_last_lines_and_what_follows_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "gpu0.log"
    assert [line async for line in read_log(path, 10)] == []
    path.with_name("gpu0.log.1").write_text("old 1\nold 2\n")
    path.write_text("new 1\nnew 2\nhalf")
    assert [line async for line in read_log(path, 3)] == ["old 2", "new 1", "new 2"]
    async with contextlib.aclosing(read_log(path, 1, follow=True)) as lines:
        assert await anext(lines) == "new 2"
        with open(path, "a") as file:
            file.write(" and whole\n")
        async with asyncio.timeout(10):
            assert await anext(lines) == "half and whole"
            path.replace(path.with_name("gpu0.log.1"))
            path.write_text("after\n")
            assert await anext(lines) == "after"


def test_the_last_words_begin_with_the_alarm(tmp_path: Path) -> None:
    drain = LogDrain("gpu0", tmp_path / "log", Unread())
    assert drain.last_words() == ""
    drain.data_received(b"starting\nready\n\n")
    assert drain.last_words() == "starting | ready"
    drain.data_received(b"CUDA error: out of memory\n  current device: 0\n")
    assert drain.last_words() == "CUDA error: out of memory | current device: 0"
    drain.close()


def test_what_llama_server_says_of_every_prompt_pushes_nothing_out(tmp_path: Path) -> None:
    drain = LogDrain("gpu0", tmp_path / "log", Unread())
    drain.data_received(b"ggml_backend_cuda: CUDA error: an illegal memory access\nsrv  update_slots: stopped\n")
    prompt = b"slot launch_slot_: id  1 | task -1 | sampler params: \n\trepeat_last_n = 64\n" * 10
    for _ in range(30):
        drain.data_received(prompt)
    assert drain.last_words() == "ggml_backend_cuda: CUDA error: an illegal memory access | srv  update_slots: stopped"
    drain.close()
    assert (tmp_path / "log").read_bytes().count(b"slot ") == 300, "the file has it all"
