"""Draw the style pictures that ship with the project.

Every picture is original, drawn from scratch with NumPy, Pillow and a fixed seed. So it is free of
third-party rights and can be reproduced at any time:

* ``swirling_strokes``: thick brush strokes that follow the whirls of a night sky over fields.
* ``stained_glass``: rose windows among curved rays of leaded glass in jewel colours.
* ``woodcut``: a colour print of a sun over mountains, hills and sea, carved in four blocks.
* ``mosaic_tiles``: a spiral sun, a flower, a wave and fish scales in rows of small glass tiles.
* ``engraving``: mountains, a lake and a sun, hatched in dark ink on cream paper.
* ``pointillism``: an evening at the sea in dots of pure colour.

Run it from anywhere::

    python scripts/make_styles.py [--output DIR] [--size 512] [STYLE ...]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from drawing.canvas import Array, Canvas, finished
from drawing.engraving import draw_engraving
from drawing.mosaic_tiles import draw_mosaic_tiles
from drawing.pointillism import draw_pointillism
from drawing.stained_glass import draw_stained_glass
from drawing.swirling_strokes import draw_swirling_strokes
from drawing.woodcut import draw_woodcut
from PIL import Image

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "configs" / "styles"
DEFAULT_SIZE = 512
MAX_BYTES = 139_000
MAX_QUALITY = 95
MIN_QUALITY = 40

PICTURES: dict[str, Callable[[Canvas], Array]] = {
    "swirling_strokes": draw_swirling_strokes,
    "stained_glass": draw_stained_glass,
    "woodcut": draw_woodcut,
    "mosaic_tiles": draw_mosaic_tiles,
    "engraving": draw_engraving,
    "pointillism": draw_pointillism,
}


def encoded(picture: Image.Image) -> bytes:
    """Returns the picture as the best JPEG that stays below the size limit."""
    for quality in range(MAX_QUALITY, MIN_QUALITY, -1):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(description="Draw the style pictures of the project.")
    parser.add_argument("styles", nargs="*", metavar="STYLE", help=f"of {', '.join(PICTURES)}")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE, help="side in pixels")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.styles) - set(PICTURES))
    if unknown:
        parser.error(f"unknown style: {', '.join(unknown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the named pictures, or all of them, and prints what was written."""
    options = parse_arguments(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    canvas = Canvas.for_picture(options.size)
    for style in options.styles or PICTURES:
        path = options.output / f"{style}.jpg"
        data = encoded(finished(PICTURES[style](canvas), canvas))
        path.write_bytes(data)
        print(f"{path}: {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
