"""How strong a frame is in painted pictures: an edge painted as an edge, against the same place inside a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stylize.errors import StylizeError
from stylize.evaluation.borders import border_mask

FRAME_PX = 24
MORE_PX = 64  # a multiple of what generators divide the size by, so that their pixels lie alike


def frame_score(paint: Callable[[Tensor], Tensor], photographs: Sequence[Tensor]) -> float:
    """Return how much more a picture's outer 24 px depend on its edge than its inside does: 1 if equally.

    Each photograph is painted as it is, and with 64 px more of itself mirrored around it, which is cut off again. The
    score is the root mean square of the difference in the outer 24 px over that inside, over all photographs together.
    A network that normalizes by the picture's own statistics changes the inside, too, as the mirrored parts change
    them: that is the unit. It is blind to a frame that a mirrored surrounding makes as well.

    Args:
        paint: `(1, 3, H, W)` in [0, 1] to the same shape.
        photographs: `(3, H, W)` in [0, 1], more than 64 px in each direction.

    Raises:
        StylizeError: A photograph is smaller.

    >>> def with_dark_frame(x):
    ...     return x * (0.9 + 0.1 * ~border_mask(x.shape[2], x.shape[3], 24))
    >>> photograph = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    >>> frame_score(lambda x: x, [photograph]), frame_score(with_dark_frame, [photograph]) > 100
    (1.0, True)
    """
    at_edge, inside = [], []
    for photograph in photographs:
        height, width = photograph.shape[-2:]
        if min(height, width) <= MORE_PX:
            raise StylizeError(
                f"got a photograph of {width}×{height} px, must be more than {MORE_PX} px in each direction"
            )
        image = photograph[None]
        surrounded = paint(functional.pad(image, (MORE_PX,) * 4, mode="reflect"))
        cut = surrounded[..., MORE_PX : MORE_PX + height, MORE_PX : MORE_PX + width]
        difference = (paint(image) - cut)[0].float().square().mean(0).cpu()
        frame = border_mask(height, width, FRAME_PX)
        at_edge.append(difference[frame])
        inside.append(difference[~frame])
    outer, inner = (torch.cat(parts).double().mean().sqrt().item() for parts in (at_edge, inside))
    if inner == outer == 0:
        return 1.0
    return outer / max(inner, LEAST_DIFFERENCE)


LEAST_DIFFERENCE = 1e-4  # a fortieth of a grey level: below, there is no change to compare with
