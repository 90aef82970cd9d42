"""What the children of tests do; a module of its own, because each child imports it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import msgspec

from obatchd import child, frames
from obatchd.frames import Channel

ANYTHING: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()


def echo(connection: socket.socket) -> None:
    while True:
        frames.send(connection, frames.receive(connection, ANYTHING))


async def echo_in_a_loop(connection: socket.socket) -> None:
    channel = await Channel.open(connection, ANYTHING)
    while True:
        channel.send(await channel.receive())


def echo_with_a_loop(connection: socket.socket) -> None:
    asyncio.run(echo_in_a_loop(connection))


def exit_with(status: int, connection: socket.socket) -> None:
    os._exit(status)


def fail(connection: socket.socket) -> None:
    raise ValueError("a defect")


def hang(connection: socket.socket) -> None:
    child.end_with_parent(connection)
    frames.send(connection, "hanging")
    time.sleep(3600)


def hang_for_good(connection: socket.socket) -> None:
    frames.send(connection, "hanging")
    time.sleep(3600)


def send_raw(data: bytes, connection: socket.socket) -> None:
    connection.sendall(data)
    time.sleep(3600)


def speak_slowly(connection: socket.socket) -> None:
    while True:
        frames.send(connection, "still here")
        time.sleep(0.05)


def read_when_told(flag: str, connection: socket.socket) -> None:
    """Reads nothing until there is a file ``flag``; then says of each message how long it is."""
    while not os.path.exists(flag):
        time.sleep(0.01)
    while True:
        frames.send(connection, len(frames.receive(connection, ANYTHING)))
