"""The studies, one file each; to add one, write its file and add its line."""

from __future__ import annotations

from collections.abc import Mapping

from stylize.studies.comparisons import (
    batch_size,
    contrast,
    frozen,
    gates,
    generators,
    image_count,
    loss_networks,
    norms,
    padding,
    starts,
    styles,
)
from stylize.studies.study import Study

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        norms.STUDY,
        contrast.STUDY,
        frozen.STUDY,
        image_count.STUDY,
        padding.STUDY,
        gates.STUDY,
        batch_size.STUDY,
        generators.STUDY,
        loss_networks.STUDY,
        starts.STUDY,
        styles.STUDY,
    )
}
