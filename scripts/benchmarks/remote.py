"""A player in a process of its own: its memory can be told, and nothing before it has warmed anything up."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import MappingProxyType, TracebackType
from typing import Any
from unittest import mock

import click
import torch
from benchmarks.settings import Settings

READY = "ready"


def serve(connection: Connection, make: Callable[[Settings], Any], settings: Settings) -> None:
    """The process: make the player, then answer calls of its methods until the other end is closed."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    player = make(settings)
    connection.send(READY)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        connection.send(getattr(player, method)(*arguments))


class Remote:
    """The process of a player, seen from outside; it is ready when this is.

    Args:
        name: What is said of it when it fails.
        make: Makes the player there.
        settings: Are given to it.
        variables: Of its environment, over those of this process.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[Settings], Any],
        settings: Settings,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.connection, theirs = context.Pipe()
        # Not a daemon: those may have no processes of their own, which decoding and compiling need.
        self.process = context.Process(target=serve, args=(theirs, make, settings))
        with mock.patch.dict(os.environ, variables):  # there is no other way to give some to a new process
            self.process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: object) -> Any:
        """What a method of the player gives.

        Raises:
            click.ClickException: The process failed.
        """
        self.connection.send((method, arguments))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError as error:
            raise click.ClickException(f"{self.name}: its process failed; its message stands above") from error
