"""Why instance normalization helps: is it the photographs' contrast, or their style?"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from PIL import Image

from stylize.evaluation.contrast import equalize_luminance
from stylize.evaluation.statistics import Table, spread
from stylize.pictures.picture import to_image, to_tensor
from stylize.studies.findings import Finding, Sheet
from stylize.studies.photographs import Split, transformed
from stylize.studies.runs import Arm
from stylize.studies.study import Findings, Results, Setting, Study, norms_named

COMPARED_NORMS = norms_named("BN", "IN")
# Read off the paper's figure 1 at 5,000 steps.
PUBLISHED = {"original": 1.28, "equalized": 1.41, "restyled": 1.17}


def _changes(setting: Setting) -> dict[str, Callable[[Image.Image], Image.Image]]:
    def restyled(image: Image.Image) -> Image.Image:
        return to_image(setting.restyle(to_tensor(image)[None])[0])

    return {"equalized": equalize_luminance, "restyled": restyled}


def _sets(setting: Setting) -> dict[str, Split]:
    side = setting.base.content.resize
    other = "".join(letter if letter.isalnum() else "-" for letter in setting.restyle_name)
    names = {"equalized": f"equalized-{side}", "restyled": f"restyled-{side}-{other}"}
    sets = {
        kind: transformed(setting.photographs, names[kind], side, change) for kind, change in _changes(setting).items()
    }
    return {"original": setting.photographs, **sets}


def _arms(setting: Setting) -> list[Arm]:
    return [
        Arm(f"{norm}, {name}", {"generator.norm": kind, **photographs.changes()})
        for name, photographs in _sets(setting).items()
        for norm, kind in COMPARED_NORMS.items()
    ]


def _ratios(results: Results, name: str) -> list[float]:
    """Return the style loss with BN relative to that with IN, by seed."""
    pairs = zip(results.final(f"BN, {name}", "style"), results.final(f"IN, {name}", "style"), strict=True)
    return [batch / instance for batch, instance in pairs]


def _findings(results: Results) -> Findings:
    sets = _sets(results.setting)
    rows = [
        (name, *(spread(results.final(f"{norm}, {name}", "style")) for norm in COMPARED_NORMS),
         spread(_ratios(results, name)), f"{PUBLISHED[name]:.2f}")
        for name in sets
    ]  # fmt: skip
    columns = ("photographs", "BN: style", "IN: style", "BN / IN", "BN / IN, AdaIN's figure 1")
    parts: list[Finding] = [
        Table("Held-out style loss after the last step, on photographs like the trained", columns, rows)
    ]
    parts += [
        results.plot(f"Held-out style loss, {name} photographs", [f"{norm}, {name}" for norm in COMPARED_NORMS])
        for name in sets
    ]
    changes = _changes(results.setting).values()
    rows_of_sheet = [[p, *(to_tensor(change(to_image(p))) for change in changes)] for p in results.pictures]
    parts.append(Sheet("Photographs as they are trained on", tuple(sets), rows_of_sheet))
    painters = {norm: results.generator(f"{norm}, original") for norm in COMPARED_NORMS}
    parts.append(results.contrast_table("How the pictures depend on the photographs' contrast", painters))
    parts.append(results.contrast_sheet("One photograph at four contrasts", painters))
    return Findings([*_statements(results), *_about_contrast(results)], parts)


def _statements(results: Results) -> list[str]:
    means = {name: fmean(_ratios(results, name)) for name in PUBLISHED}
    shrinks = "shrinks" if means["restyled"] < means["original"] else "does not shrink"
    return [
        f"BN / IN is {spread(_ratios(results, 'original'))} on original, {spread(_ratios(results, 'equalized'))} on "
        f"equalized and {spread(_ratios(results, 'restyled'))} on restyled photographs: the gap {shrinks} when the "
        "style of the photographs is normalized (AdaIN's figure: 1.28, 1.41, 1.17)",
        results.compare("IN, original", "BN, original"),
        results.compare("IN, equalized", "BN, equalized"),
        results.compare("IN, restyled", "BN, restyled"),
    ]


def _about_contrast(results: Results) -> list[str]:
    found = []
    for norm in COMPARED_NORMS:
        painter = results.generator(f"{norm}, original")
        change = results.evaluated(painter).contrasts()[0.25]["stylized_rms"]
        found.append(f"{norm}: at a quarter of the contrast the picture changes by {change} (RMS, of 1)")
    return found


STUDY = Study(
    "contrast",
    "BN and IN on original, contrast-normalized and style-normalized photographs",
    "Ulyanov et al. 2016 explain that instance normalization makes the network independent of the photograph's "
    "contrast. Huang & Belongie 2017 (arXiv:1703.06868, figure 1) train on photographs with an equalized luminance "
    "histogram: IN still has the lower loss, so contrast is not the whole reason. On photographs that a network for "
    "another style has painted, BN comes closer to IN: IN removes style.",
    _arms,
    _findings,
)
