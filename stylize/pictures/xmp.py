"""XMP packets as bytes: kept as they are, except for values that are no longer true."""

from __future__ import annotations

import re

NAMESPACES = {"tiff": b"http://ns.adobe.com/tiff/1.0/", "exif": b"http://ns.adobe.com/exif/1.0/"}


def xmp_orientation(packet: bytes) -> int | None:
    """Return the orientation that an XMP packet gives, 1 to 8 as in EXIF, or None.

    >>> xmp_orientation(b'<a tiff:Orientation="6"/>'), xmp_orientation(b"<a/>")
    (6, None)
    """
    found = re.search(_value(packet, "tiff", b"Orientation", rb"[1-8]"), packet)
    return None if found is None else int(found[2])


def corrected_xmp(packet: bytes, size: tuple[int, int] | None = None) -> bytes:
    """Return an XMP packet for an upright picture, of this width and height in px.

    >>> corrected_xmp(b'<a tiff:Orientation="6"/>')
    b'<a tiff:Orientation="1"/>'
    """
    packet = re.sub(_value(packet, "tiff", b"Orientation", rb"[2-8]"), rb"\g<1>1", packet)
    for side, names in zip(size or (), SIDES, strict=False):
        for prefix, name in names:
            packet = re.sub(_value(packet, prefix, name, rb"\d{1,9}"), rb"\g<1>%d" % side, packet)
    return packet


SIDES = (
    (("tiff", b"ImageWidth"), ("exif", b"PixelXDimension")),
    (("tiff", b"ImageLength"), ("exif", b"PixelYDimension")),
)


def _value(packet: bytes, prefix: str, name: bytes, value: bytes) -> re.Pattern[bytes]:
    """Return the expression of a property, as an attribute or an element; group 2 is its value."""
    found = re.search(rb"xmlns:([\w.-]{1,50})\s*=\s*[\"']" + re.escape(NAMESPACES[prefix]) + rb"[\"']", packet)
    bound = re.escape(prefix.encode() if found is None else found[1])
    before = rb"((?<![\w:.-])" + bound + rb":" + name + rb"(?:\s*=\s*[\"']\s*|(?<=" + name + rb")\s*>\s*))"
    return re.compile(before + rb"(" + value + rb")(?=\s*[\"'<])")
