"""Write the findings of a study: a self-contained HTML page; CSVs, plots and sheets; TensorBoard."""

from __future__ import annotations

import base64
import html
import io
import platform
import sys
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stylize import __version__
from stylize.errors import StylizeError
from stylize.evaluation.statistics import Table
from stylize.pictures.picture import to_image, to_tensor
from stylize.pictures.sheets import contact_sheet
from stylize.studies.findings import Finding, Histogram, Line, Plot, Sheet, slug
from stylize.studies.study import Findings, Results, Study
from stylize.system.files import write_atomically
from stylize.training.tensorboard import PREFIX, EventFile

QUALITY = 88
GAP_PX = 4
HEAD_PX = 18
LEAST_ROW_HEAD_PX, MOST_ROW_HEAD_PX = 110, 260
CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { border: 1px solid #ccc; padding: .3rem .7rem; text-align: left }
td { font-variant-numeric: tabular-nums } th { background: #f3f3f3 } figure { margin: 1.5rem 0 }
figcaption { font-weight: 600; margin-bottom: .4rem } img, svg { max-width: 100%; height: auto }
code, pre { font: 13px/1.4 ui-monospace, monospace; background: #f6f6f6 } pre { padding: .8rem; overflow: auto }
"""


@dataclass(frozen=True)
class Provenance:
    """How a report was made.

    Attributes:
        command: The command line.
        device: Device that computed it.
        seconds: Duration of the last call of the command.
    """

    command: str
    device: torch.device
    seconds: float


def write_report(folder: Path, study: Study, results: Results, findings: Findings, provenance: Provenance) -> Path:
    """Write `report.html`, `report.md`, every table as CSV, plots as SVG and JPEG, and sheets as JPEG.

    Raises:
        StylizeError: matplotlib is not installed, or the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [_shown(folder, part) for part in findings.parts]
    page = _page(study, results, findings, provenance, shown)
    write_atomically(folder / "report.html", page.encode())
    write_atomically(folder / "report.md", _markdown(study, results, findings, provenance).encode())
    _write_events(folder, findings)
    return folder / "report.html"


def _shown(folder: Path, part: Finding) -> str:
    """Write the files of a finding, and return its HTML."""
    name, title = slug(part.title), html.escape(part.title)
    if isinstance(part, Sheet):
        picture = _jpeg(labelled(part))
        write_atomically(folder / f"{name}.jpg", picture)
        encoded = base64.b64encode(picture).decode()
        body = f'<img alt="{title}" src="data:image/jpeg;base64,{encoded}">'
    else:
        write_atomically(folder / f"{name}.csv", part.to_csv().encode())
        body = _table(part) if isinstance(part, Table) else _drawing(folder / name, part)
    return f"<figure><figcaption>{title}</figcaption>{body}</figure>"


def _table(table: Table) -> str:
    def row(cells: tuple[Any, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(table.columns, 'th')}{''.join(row(cells, 'td') for cells in table.rows)}</table>"


def as_markdown(table: Table) -> str:
    """Return a table as Markdown.

    >>> print(as_markdown(Table("t", ("", "style"), [("BN", "0.1")])))
    | | style |
    |---|---|
    | BN | 0.1 |
    """
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    shown = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    shown[1] = shown[1].replace(" ", "")
    return "\n".join(shown).replace("|  |", "| |")


def _drawing(path: Path, part: Plot | Histogram) -> str:
    """Write a plot as SVG and JPEG, and return the SVG."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        _draw_plot(axes, part) if isinstance(part, Plot) else _draw_histogram(axes, part)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        photographed = io.BytesIO()
        figure.savefig(photographed, format="jpg", dpi=110)
    finally:
        pyplot.close(figure)
    write_atomically(path.with_name(f"{path.name}.svg"), drawn.getvalue())
    write_atomically(path.with_name(f"{path.name}.jpg"), photographed.getvalue())
    text = drawn.getvalue().decode()
    return text[text.index("<svg") :]


def _draw_plot(axes: Any, plot: Plot) -> None:
    if len(plot.lines) > 10:  # the default cycle has ten colours
        axes.set_prop_cycle(color=_pyplot().colormaps["turbo"]([i / len(plot.lines) for i in range(len(plot.lines))]))
    for line in plot.lines:
        (curve,) = axes.plot(line.x, line.middle, label=line.label, linewidth=1.6)
        axes.fill_between(line.x, line.low, line.high, color=curve.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label, yscale=plot.y_scale)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_histogram(axes: Any, histogram: Histogram) -> None:
    groups = list(histogram.values)
    width = 1 / histogram.bins / len(groups)
    for i, group in enumerate(groups):
        places = [bin_ / histogram.bins + (i + 0.5) * width for bin_ in range(histogram.bins)]
        axes.bar(places, histogram.counts(group), width, label=group)
    axes.set(xlabel=histogram.x_label, ylabel="channels")
    axes.legend(fontsize="small")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise StylizeError("stylize study: matplotlib is not installed: pip install 'stylize[study]'") from error
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "stylize"
    from matplotlib import pyplot

    return pyplot


def check_plots_can_be_drawn() -> None:
    """Check that matplotlib is installed, before anything is trained.

    Raises:
        StylizeError: It is not.
    """
    _pyplot()


def labelled(sheet: Sheet) -> Tensor:
    """Return a sheet as one picture, `(3, H, W)`, with the names of columns and rows."""
    pictures = [list(row) for row in sheet.pictures]
    width, height = pictures[0][0].shape[-1], pictures[0][0].shape[-2]
    body = contact_sheet(pictures, GAP_PX)
    font = ImageFont.load_default(11)
    longest_px = max((int(font.getlength(word)) + 8 for word in sheet.rows), default=0)
    left = min(max(longest_px, LEAST_ROW_HEAD_PX), MOST_ROW_HEAD_PX) if sheet.rows else 0
    canvas = Image.new("RGB", (left + body.shape[-1], HEAD_PX + body.shape[-2]), "white")
    canvas.paste(to_image(body), (left, HEAD_PX))
    draw = ImageDraw.Draw(canvas)
    for i, head in enumerate(sheet.columns):
        draw.text((left + i * (width + GAP_PX), 2), _fitting(draw, head, width, font), "black", font)
    for i, word in enumerate(sheet.rows):
        draw.text(
            (2, HEAD_PX + i * (height + GAP_PX) + height // 2), _fitting(draw, word, left - 4, font), "black", font
        )
    return to_tensor(canvas)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width_px: int, font: Any) -> str:
    while draw.textlength(text, font) > width_px:
        text = text[:-2] + "…"
    return text


def _jpeg(picture: Tensor) -> bytes:
    encoded = io.BytesIO()
    to_image(picture).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def _markdown(study: Study, results: Results, findings: Findings, provenance: Provenance) -> str:
    """Return the report for a repository or a notebook; it shows the files in the same folder."""
    lines = [
        f"# {study.title}",
        study.question,
        f"```bash\n{provenance.command}\n```",
        _summary(results),
        _machine(provenance),
    ]
    lines.append("\n".join(f"- {statement}" for statement in findings.statements))
    for part in findings.parts:
        shown = as_markdown(part) if isinstance(part, Table) else f"![{part.title}]({slug(part.title)}.jpg)"
        lines += [f"## {part.title}", shown]
    return "\n\n".join(lines) + "\n"


def _summary(results: Results) -> str:
    """Return a sentence about the trainings."""
    base = results.setting.base
    seeds = ", ".join(str(base.seed + seed) for seed in results.setting.seeds)
    return (
        f"{len(results.arms)} settings, seeds {seeds}; {base.train.steps} steps each; "
        f"{results.setting.photographs_count()} photographs to train on, {len(results.held_out)} held out; "
        "losses are relative, of the network after the last step, in eval()."
    )


def _page(study: Study, results: Results, findings: Findings, provenance: Provenance, shown: list[str]) -> str:
    base = results.setting.base
    statements = "".join(f"<li>{html.escape(statement)}</li>" for statement in findings.statements)
    commands = "\n".join(dict.fromkeys(run.command for run in results.runs))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(study.name)}: {html.escape(study.title)}</title>
<style>{CSS}</style></head><body>
<h1>{html.escape(study.title)}</h1><p>{html.escape(study.question)}</p><p>{html.escape(_summary(results))}</p>
<h2>What was found</h2><ul>{statements}</ul>
<h2>Figures</h2>{"".join(shown)}
<h2>How it was made</h2><pre>{html.escape(provenance.command)}</pre>
<p>{html.escape(_machine(provenance))}</p>
<h3>The config that all have in common</h3><pre>{html.escape(base.to_yaml())}</pre>
<h3>Every training by itself</h3><pre>{html.escape(commands)}</pre>
</body></html>
"""


def _machine(provenance: Provenance) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "pillow"))
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"stylize {__version__}, Python {python}, {packages}; {platform.system()} {platform.machine()}, "
        f"{provenance.device}, {torch.get_num_threads()} threads; the last call took {provenance.seconds:.0f} s."
    )


def _write_events(folder: Path, findings: Findings) -> None:
    """Write the curves and sheets for TensorBoard, replacing those of an earlier call."""
    for old in folder.rglob(f"{PREFIX}*"):
        old.unlink()
    curves: dict[str, list[tuple[str, Line]]] = {}
    for part in findings.parts:
        for line in part.lines if isinstance(part, Plot) else ():
            curves.setdefault(line.label, []).append((part.title, line))
    for label, lines in curves.items():
        place = folder / "curves" / slug(label)
        place.mkdir(parents=True, exist_ok=True)
        with closing(EventFile(place)) as events:
            for title, line in lines:
                for x, y in zip(line.x, line.middle, strict=True):
                    events.scalar(title, y, int(x))
            events.flush()
    with closing(EventFile(folder)) as events:
        for part in findings.parts:
            if isinstance(part, Sheet):
                events.image(part.title, labelled(part), 0)
        events.text("found", "\n".join(f"- {statement}" for statement in findings.statements), 0)
        events.flush()
