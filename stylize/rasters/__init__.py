"""The door for the pictures that are painted: of any size, by strips, with all that stands beside their pixels.

libvips decodes and encodes by strips, so a raster on the disk takes little memory, however large the picture is. What
cannot be had by strips is held as a whole: progressive JPEG and interlaced PNG while they are read, WebP, GIF (frame by
frame) and AVIF both ways, and what Pillow reads or writes because libvips does not (BMP, PPM).

`images` stays the door for training: whole pictures, small, 8 bits.
"""

from stylize.rasters.raster import Header, Notes, Raster, raster_of
from stylize.rasters.reading import read_header, read_raster
from stylize.rasters.writing import write_raster

__all__ = ["Header", "Notes", "Raster", "raster_of", "read_header", "read_raster", "write_raster"]
