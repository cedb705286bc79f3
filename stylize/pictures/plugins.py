"""Plug-ins of Pillow for further formats: the extra `formats`."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from stylize.pictures.formats import Format


def load_plugin(image_format: Format) -> None:
    """Let Pillow know a format that needs a plug-in, which is installed."""
    if image_format.plugin is not None:
        register(image_format.plugin)


@cache
def register(name: str) -> None:
    """Import a plug-in by its name, and let Pillow know it."""
    module = import_module(name)
    if hasattr(module, "register_heif_opener"):  # others register themselves when they are imported
        module.register_heif_opener()
