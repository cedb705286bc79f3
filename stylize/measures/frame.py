"""How strong a frame is in painted pictures: an edge painted as an edge, against the same place inside a picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

FRAME_PX = 24
MORE_PX = 64  # a multiple of what generators divide the size by, so that their pixels lie alike
LEAST_DIFFERENCE = 1e-4  # a fortieth of a grey level: below, there is no change to compare with


def frame_score(paint: Callable[[Tensor], Tensor], photograph: Tensor, painted: Tensor) -> float | None:
    """Return how much more a picture's outer 24 px depend on its edge than its inside does: 1 if equally.

    The photograph is painted as it is, and with 64 px more of itself mirrored around it, which is cut off again. The
    score is the root mean square of the difference in the outer 24 px over that inside. A network that normalizes by
    the picture's own statistics changes the inside, too, as the mirrored parts change them: that is the unit. It is
    blind to a frame that a mirrored surrounding makes as well.

    Args:
        paint: `(1, 3, H, W)` in [0, 1] to the same shape.
        photograph: `(3, H, W)` in [0, 1].
        painted: What `paint` makes of it, the same shape.

    Returns:
        None of a photograph that has not more than 64 px in each direction.

    >>> def with_dark_frame(x):
    ...     return x * (0.9 + 0.1 * ~border_mask(x.shape[2], x.shape[3], 24))
    >>> photograph = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    >>> frame_score(lambda x: x, photograph, photograph)
    1.0
    >>> frame_score(with_dark_frame, photograph, with_dark_frame(photograph[None])[0]) > 100
    True
    """
    height, width = photograph.shape[-2:]
    if min(height, width) <= MORE_PX:
        return None
    surrounded = paint(functional.pad(photograph[None], (MORE_PX,) * 4, mode="reflect"))[0]
    cut = surrounded[:, MORE_PX : MORE_PX + height, MORE_PX : MORE_PX + width]
    difference = (painted - cut).float().square().mean(0).cpu().double()
    frame = border_mask(height, width, FRAME_PX)
    outer, inner = (difference[part].mean().sqrt().item() for part in (frame, ~frame))
    if outer == inner == 0:
        return 1.0
    return outer / max(inner, LEAST_DIFFERENCE)


def border_mask(height: int, width: int, border: int) -> Tensor:
    """Return whether each position `(H, W)` lies in a border of that width.

    >>> border_mask(3, 4, 1).int().tolist()
    [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    """
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[border : height - border, border : width - border] = False
    return mask
