"""Run a player in a new process, so that its memory can be measured and nothing is warmed up before."""

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
    """Run in the new process: create the player, then answer calls of its methods until the other end is closed."""
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
    """Handle to the process of a player, which is ready when the constructor returns.

    Args:
        name: Name in error messages.
        make: Creates the player in the new process.
        settings: Argument of `make`.
        variables: Environment variables, in addition to those of this process.
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
        # Not a daemon: daemons may not start processes, which decoding and compiling need.
        self.process = context.Process(target=serve, args=(theirs, make, settings))
        with mock.patch.dict(os.environ, variables):  # the only way to set variables of a spawned process
            self.process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: object) -> Any:
        """Return the result of a method of the player.

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
