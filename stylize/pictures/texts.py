"""Texts and comments of files, and what else is read from a file beside its pixels."""

from __future__ import annotations

from dataclasses import dataclass

COMMENT, DESCRIPTION = "Comment", "Description"
MOST_BYTES = 8 * 2**20  # of all texts of a file together, and of any block beside them
MOST_TEXTS = 10_000


@dataclass(frozen=True)
class Text:
    """A text of a PNG file, or a comment.

    Attributes:
        keyword: What it is; "Comment" for the comments of JPEG, GIF and PPM.
        content: As it stands in the file, decompressed.
        encoding: "latin-1" or "utf-8"; "" where the format does not say it.
        language: A tag as "en", or "".
        translated: The keyword in that language, or "".
    """

    keyword: str
    content: bytes
    encoding: str = ""
    language: str = ""
    translated: str = ""

    @property
    def is_comment(self) -> bool:
        """Whether JPEG, GIF and PPM hold it, as a comment."""
        return self.keyword in (COMMENT, DESCRIPTION)

    def as_comment(self) -> bytes:
        """Return the text in UTF-8; a comment as it is."""
        return self.content.decode("latin-1").encode() if self.encoding == "latin-1" else self.content


@dataclass(frozen=True)
class Notes:
    """What a file holds beside its pixels, as its blocks say.

    Attributes:
        exif: With or without prefix.
        xmp: XMP packet.
        xmp_extension: What did not fit into a JPEG's first XMP packet.
        iptc: Bare, or within Photoshop resources.
        texts: Texts and comments, in the file's order.
        left_out: What is not read, each in some words.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    xmp_extension: bytes | None = None
    iptc: bytes | None = None
    texts: tuple[Text, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass
class TextRoom:
    """How much more of texts is taken from a file."""

    bytes: int = MOST_BYTES
    texts: int = MOST_TEXTS

    def takes(self, length: int) -> bool:
        """Take a text of this length if there is room."""
        fits = length <= self.bytes and self.texts > 0
        if fits:
            self.bytes, self.texts = self.bytes - length, self.texts - 1
        return fits
