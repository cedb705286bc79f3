"""Files made to do harm, and files damaged by chance: a picture, a model, a run, or one clear line."""

import json
import logging
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fixtures_fuzz import TIMES, mutated, outcome
from fixtures_runs import picture, tiny, write_config, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_reported_files import page, tiff
from test_reported_values import LINEAR, SAMPLES

from stylize.config import RunConfig, load_config
from stylize.errors import StylizeError
from stylize.models.file import load_model, read_card
from stylize.pictures.reading import read_picture, read_raster, read_rgb

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MOST_KIB = 300 * 1024
MODEL_MUTATIONS, IMAGE_MUTATIONS, CONFIGS = 100 * TIMES, 200 * TIMES, 100 * TIMES

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from stylize.errors import StylizeError
from stylize.models.file import load_model
load_model(Path(sys.argv[1]))
for path in sys.argv[2:]:
    start_s, start_kib = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_model(Path(path))
        told = "loaded"
    except StylizeError as error:
        told = str(error)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib
    print(json.dumps([told, time.monotonic() - start_s, grown_kib]))
"""


def with_metadata(model: Path, path: Path, **changes: str) -> Path:
    with safe_open(model, "pt") as file:
        metadata = {**file.metadata(), **changes}
    save_file(load_file(model), path, metadata)
    return path


def with_header(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def hostile_models(folder: Path) -> dict[Path, str]:
    """Files, and how the refusal of each begins."""
    model = write_model(folder / "good.safetensors")
    with safe_open(model, "pt") as file:
        metadata = file.metadata()
    wide = {"generator": metadata["generator"].replace('"width":4', '"width":512')}
    million = {"generator": metadata["generator"].replace('"width":4', '"width":1000000')}
    huge = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    empty = {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}
    integers, doubles = folder / "integers.safetensors", folder / "doubles.safetensors"
    save_file({name: value.int() for name, value in load_file(model).items()}, integers, metadata)
    save_file({name: value.double() for name, value in load_file(model).items()}, doubles, metadata)
    infinite = folder / "infinite.safetensors"
    save_file({name: value / 0 for name, value in load_file(model).items()}, infinite, metadata)
    nested = "[" * 100_000 + "]" * 100_000
    no_model = "no stylize model: must be a .safetensors file"
    unread = "damaged: its metadata cannot be read ("
    no_fit = "damaged: its weights do not fit its johnson generator"
    return {
        with_header(folder / "huge.safetensors", {"__metadata__": metadata, "a": huge}): no_model,
        with_header(folder / "none.safetensors", {"__metadata__": metadata, "a": empty}): no_fit,
        with_header(folder / "long.safetensors", {"__metadata__": {"format": "x" * 10**8}}): "got 100,0",
        with_metadata(model, folder / "wide.safetensors", **wide): no_fit,
        with_metadata(model, folder / "million.safetensors", **million): "damaged: its metadata: generator.width: ",
        with_metadata(model, folder / "nested.safetensors", config=nested): unread,
        with_metadata(model, folder / "path.safetensors", style="../../x"): unread + "style",
        with_metadata(model, folder / "step.safetensors", step="9" * 4000): unread + "step",
        integers: no_fit,
        doubles: no_fit,
        infinite: "damaged: not all of its weights are finite",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by getrusage")
def test_hostile_models_are_refused_within_a_second_and_without_memory(tmp_path: Path) -> None:
    hostile = hostile_models(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "good.safetensors"), *map(str, hostile)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    for (path, beginning), (told, seconds, grown_kib) in zip(hostile.items(), measured, strict=True):
        assert told.startswith(f"{path}: {beginning}")
        assert "\n" not in told
        assert len(told) < 500
        assert seconds < 1, path
        assert grown_kib < 20 * 1024, path


def test_what_a_model_says_cannot_steer_the_terminal(tmp_path: Path) -> None:
    steering = "\x1b[2Jrandom\r\n" + "x" * 1000
    path = with_metadata(write_model(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", vgg=steering)
    assert read_card(path).vgg == "?[2Jrandom??" + "x" * 188


def test_mutated_models_load_or_are_refused_in_one_line(tmp_path: Path) -> None:
    seeds = [write_model(tmp_path / f"{norm}.st", norm=norm).read_bytes() for norm in ("instance", "batch_instance")]
    draw, path = random.Random(0), tmp_path / "mutated.safetensors"
    outcomes = []
    for i in range(MODEL_MUTATIONS):
        path.write_bytes(mutated(seeds[i % len(seeds)], draw))
        outcomes.append(outcome(path, load_model))
    assert set(outcomes) == {"read", "refused"}


def image_seeds(folder: Path) -> list[Path]:
    """Images over the formats and their modes."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = Image.open(picture(folder / "rgb.png"))
    levels = np.linspace(0, 65535, 48 * 40).astype(np.uint16).reshape(40, 48)
    saves: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned.jpg": (rgb, {"exif": exif, "icc_profile": srgb}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "gray.jpg": (rgb.convert("L"), {"icc_profile": profile}),
        "alpha.png": (rgb.convert("RGBA"), {}),
        "sixteen.png": (Image.fromarray(levels), {}),
        "palette.png": (rgb.convert("P"), {"transparency": 3}),
        "rgb.gif": (rgb, {}),
        "rgb.bmp": (rgb, {}),
        "packed.tif": (rgb.convert("RGBA"), {"compression": "tiff_deflate"}),
        "float.tiff": (Image.fromarray(levels.astype(np.float32) / 65535), {}),
        "signed.tiff": (Image.fromarray(levels.astype(np.int32) * 32768), {}),
        "profile.png": (rgb, {"icc_profile": LINEAR}),
        "progressive.jfif": (rgb, {"progressive": True, "comment": b"a text", "xmp": b"<rdf:RDF/>"}),
        "rgb.webp": (rgb, {}),
        "rgb.avif" if features.check("avif") else "rgb.ppm": (rgb, {}),
    }
    for name, (image, options) in saves.items():
        image.save(folder / name, **options)
    annotated = annotated_seeds((folder / "alpha.png").read_bytes(), (folder / "turned.jpg").read_bytes())
    for name, content in annotated.items():
        (folder / name).write_bytes(content)
    integers = [name for name in SAMPLES if "integers" in name]
    for i, name in enumerate(integers):
        (folder / f"{i}.tif").write_bytes(SAMPLES[name][0])
    named = [*saves, *annotated, *(f"{i}.tif" for i in range(len(integers)))]
    return [*(folder / name for name in named), *stated_colours(folder), *several_pictures(folder, rgb)]


def several_pictures(folder: Path, rgb: Image.Image) -> list[Path]:
    """Animations and documents: PNG, TIFF with pages, with a thumbnail and a SubIFD, and AVIF."""
    more = {"save_all": True, "append_images": [rgb.rotate(180)]}
    places = [folder / "moving.png", folder / "pages.tif", folder / "inner.tif"]
    rgb.save(places[0], duration=[50, 60], **more)
    rgb.save(places[1], compression="tiff_lzw", **more)
    places[2].write_bytes(tiff(page(10, 20, 15, t254=1), inner={0: page(200)}))
    if features.check("avif"):
        places.append(folder / "moving.avif")
        rgb.save(places[-1], duration=[50, 60], **more)
    return places


def stated_colours(folder: Path) -> list[Path]:
    """Three PNG files that state their colours in chunks."""
    plain, places = (folder / "rgb.png").read_bytes(), []
    chromaticities = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    stated = {b"gAMA": struct.pack(">I", 100000), b"cHRM": chromaticities, b"cICP": bytes((12, 13, 0, 1))}
    for kind, content in stated.items():
        places.append(folder / f"{kind.decode()}.png")
        places[-1].write_bytes(plain[:33] + chunk(kind, content) + plain[33:])
    return places


def annotated_seeds(png: bytes, jpeg: bytes) -> dict[str, bytes]:
    """Images with texts, comments, raw profiles, XMP of two parts, and EXIF after the pixels."""
    exif = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    raw = b"\nexif\n      %d\n%s\n" % (len(exif), exif.hex().encode())
    digest = b"0123456789ABCDEF" * 2
    xmp = b'<rdf:RDF tiff:Orientation="6" xmpNote:HasExtendedXMP="%s"></rdf:RDF>' % digest
    texts = [
        (b"tEXt", b"Comment\0a text"), (b"zTXt", b"Title\0\0" + zlib.compress(b"a text")),
        (b"iTXt", b"Author\0\1\0de\0Autor\0" + zlib.compress(b"a text")),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
    ]  # fmt: skip
    before, after = (b"".join(map(chunk, *zip(*texts, strict=True))), chunk(b"eXIf", exif))
    extension = b"http://ns.adobe.com/xmp/extension/\0" + digest + struct.pack(">II", 3, 0) + b"<x>"
    parts = [(0xFE, b"a text"), (0xFE, b""), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp), (0xE1, extension)]
    segments = b"".join(struct.pack(">BBH", 0xFF, marker, len(part) + 2) + part for marker, part in parts)
    return {
        "before.png": png[:33] + before + png[33:],
        "after.png": png[:-12] + before + after + png[-12:],
        "annotated.jpg": jpeg[:2] + segments + jpeg[2:],
    }


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_mutated_images_are_read_or_refused_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    seeds = image_seeds(tmp_path)
    assert [outcome(seed, read_picture) for seed in seeds] == ["read"] * len(seeds)
    readers: list[Callable[[Path], object]] = [
        read_picture, lambda path: read_rgb(path, 32), lambda path: read_raster(path).close()
    ]  # fmt: skip
    draw, outcomes, idle_kib = random.Random(0), [], status_kib("VmRSS")
    for i in range(IMAGE_MUTATIONS):
        seed = seeds[i % len(seeds)]
        path = tmp_path / f"mutated{seed.suffix}"
        path.write_bytes(mutated(seed.read_bytes(), draw))
        for read in readers:
            forget_peak()
            outcomes.append(outcome(path, read))
            assert status_kib("VmHWM") - idle_kib < MOST_KIB, (i, seed.name)
    assert set(outcomes) == {"read", "refused"}


def forget_peak() -> None:
    if CLEAR.exists():
        CLEAR.write_text("5")


def status_kib(key: str) -> int:
    """A line of this process's memory; 0 where the system tells none."""
    lines = STATUS.read_text().splitlines() if CLEAR.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a config."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += keys_of(field.annotation, f"{prefix}{name}.")
    return keys


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.dates() | st.binary(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=6
)
BOUNDED = settings(
    max_examples=CONFIGS, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def config_or_line(path: Path, overrides: list[str]) -> RunConfig | None:
    try:
        config = load_config(path, overrides)
    except StylizeError as error:
        assert len(str(error).splitlines()) == 1
        return None
    assert isinstance(config, RunConfig)
    return config


@BOUNDED
@given(key=st.sampled_from(keys_of(RunConfig)), value=VALUES)
def test_any_value_at_any_key_is_a_config_or_a_line(tmp_path: Path, key: str, value: Any) -> None:
    write_config(tmp_path)
    path = tmp_path / "fuzz.yaml"
    path.write_text(yaml.safe_dump(tiny({key: value}), allow_unicode=True), encoding="utf-8")
    config = config_or_line(path, [])
    if config is not None:
        path.write_text(config.to_yaml(), encoding="utf-8")
        assert config_or_line(path, []) == config


@BOUNDED
@given(key=st.sampled_from(keys_of(RunConfig)) | TEXT, text=TEXT)
def test_any_override_is_a_config_or_a_line(tmp_path: Path, key: str, text: str) -> None:
    config_or_line(write_config(tmp_path), [f"{key}={text}"])


@BOUNDED
@given(content=st.binary(max_size=200) | TEXT.map(str.encode))
def test_any_bytes_are_a_config_or_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content)
    assert config_or_line(path, []) is None
