"""Conduct a study: split the photographs, train what is missing, measure, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stylize.config import RunConfig, with_changes
from stylize.errors import StylizeError
from stylize.generators import Generator
from stylize.models.file import load_model
from stylize.models.find import built_in_models, find_model
from stylize.pictures.find import find_images
from stylize.studies.photographs import held_out_squares, split
from stylize.studies.report import Provenance, check_plots_can_be_drawn, write_report
from stylize.studies.runs import PLACE, plan_runs, train_runs
from stylize.studies.study import Results, Setting, Study
from stylize.system.devices import choose_device
from stylize.system.files import FolderLock
from stylize.training.photographs import validation_images

logger = logging.getLogger("stylize")

SHEET_PICTURES = 4
QUICK_SEEDS = 2
QUICK_ITERATIONS = 40
OF_A_STUDY = "another study is being made there; wait for its end, or choose another --output"


@dataclass(frozen=True)
class Request:
    """The options of a study.

    Attributes:
        config: Config that all its trainings start from.
        folder: Holds photographs and run folders, which all studies share, and each study's own folder.
        seeds: Number of seeds per setting.
        device: Name of the device.
        jobs: Number of trainings at a time.
        pictures: Folder of photographs for the sheets; None: the first of those held out.
        iterations: L-BFGS iterations per photograph of the reference; 0: skip.
        restyle: Model that paints photographs in another style; None: a built-in one of another style.
        networks: Loss networks to compare with the config's own.
        command: The command line.
    """

    config: RunConfig
    folder: Path
    seeds: int = 3
    device: str = "auto"
    jobs: int = 1
    pictures: Path | None = None
    iterations: int = 200
    restyle: str | None = None
    networks: tuple[str, ...] = ()
    command: str = ""


def quickened(config: RunConfig) -> RunConfig:
    """Return a small version: crops of at most 64 px, width 8, 150 steps of batches of 2, 8 photographs held out."""
    content, train = config.content, config.train
    small: dict[str, object] = {
        "content.crop": min(content.crop, 64),
        "content.resize": min(content.resize, 72) if content.crop <= 64 else 72,
        "generator.width": min(config.generator.width, 8),
        "train.steps": min(train.steps, 150),
        "train.batch_size": min(train.batch_size, 2),
        "train.validate_every": min(train.validate_every, 25),
        "train.schedule.warmup_steps": min(train.schedule.warmup_steps, 10),
    }
    if isinstance(content.validation, int):
        small["content.validation"] = min(content.validation, 8)
    return with_changes(config, small, PLACE)


def conduct(study: Study, request: Request) -> Path:
    """Run a study and write its report; finished trainings are not repeated.

    Returns:
        The path of the HTML page.

    Raises:
        StylizeError: An option, a file or a library is missing or unfit.
    """
    start_s = time.monotonic()
    check_plots_can_be_drawn()
    device = choose_device(request.device)
    pictures = None if request.pictures is None else _read_pictures(request.pictures, _sheet_side_px(request.config))
    restyle, restyle_name = _restyler(request, device)
    place = request.folder / study.name
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylizeError(f"{place}: cannot be created ({error.strerror})") from error
    with FolderLock(place, OF_A_STUDY):
        photographs = split(request.config, request.folder / "photographs")
        base = with_changes(request.config, photographs.changes(), PLACE)
        setting = Setting(
            base, photographs, tuple(range(request.seeds)), restyle, restyle_name, device, place, request.networks
        )
        arms = study.arms(setting)
        runs = plan_runs(base, arms, setting.seeds, request.folder / "runs")
        train_runs(runs, request.device, request.jobs)
        if study.arms_after is not None:
            arms_after = study.arms_after(setting, runs)
            runs_after = plan_runs(base, arms_after, setting.seeds, request.folder / "runs")
            train_runs(runs_after, request.device, request.jobs)
            arms, runs = [*arms, *arms_after], [*runs, *runs_after]
        if pictures is None:
            pictures = held_out_squares(photographs, _sheet_side_px(base))[:SHEET_PICTURES]
        names = tuple(arm.name for arm in arms)
        results = Results(setting, names, runs, device, pictures, request.iterations)
        logger.info("%s: measuring", study.name)
        findings = study.findings(results)
        for statement in findings.statements:
            logger.info("- %s", statement)
        return write_report(
            place, study, results, findings, Provenance(request.command, device, time.monotonic() - start_s)
        )


def _sheet_side_px(config: RunConfig) -> int:
    return max(config.content.crop, 160)


def _read_pictures(folder: Path, side_px: int) -> list[Tensor]:
    """Return the photographs for the sheets, as centred squares."""
    if not folder.is_dir():
        raise StylizeError(f"--pictures: got '{folder}', must be a folder of photographs that exists")
    pictures = validation_images(find_images(folder), side_px)
    if not pictures:
        raise StylizeError(f"--pictures: {folder} holds no image that can be read")
    return pictures


def _restyler(request: Request, device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return a painter of another style than the study's, loaded at first use, and the name of that style."""
    own = Path(request.config.all_styles()[0].all_images()[0].path).stem
    others = [name for name in built_in_models() if name != own]
    name = request.restyle or (others[0] if others else None)
    found = find_model(name, place="--restyle")
    loaded: list[Generator] = []

    def restyle(photographs: Tensor) -> Tensor:
        if not loaded:
            loaded.append(load_model(found.path, found.style)[0].to(device).eval())
        with torch.no_grad():
            painted: Tensor = loaded[0](photographs.to(device))
        return painted.float().cpu()

    return restyle, name or found.path.stem
