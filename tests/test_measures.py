"""Measures of paintings that no training minimizes, against values by hand."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity as reference_ssim
from torch import Tensor

from stylize.losses.vgg import VGG19
from stylize.measures.distributions import StyleDistribution
from stylize.measures.flats import flats_score, texture_variance
from stylize.measures.frame import FRAME_PX, border_mask, frame_score
from stylize.measures.painting import MEASURES, PaintingMeasures
from stylize.measures.structure import feature_structure_distance, structural_similarity
from stylize.pictures.picture import luminance


def picture(height: int = 96, width: int = 80, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def checks(contrast: float, height: int = 64, width: int = 64) -> Tensor:
    """A checkerboard of single px around gray, whose luma has this standard deviation."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return (0.5 + contrast * (1 - 2.0 * ((rows + columns) % 2))).expand(3, height, width)


@pytest.mark.parametrize(("inside", "outside"), ((0.02, 0.06), (0.05, 0.05), (0.04, 0.01)))
def test_a_frame_is_the_difference_at_the_edge_over_that_inside(inside: float, outside: float) -> None:
    def paint(image: Tensor) -> Tensor:
        if image.shape[-1] > 80:  # surrounded
            return image
        frame = border_mask(image.shape[-2], image.shape[-1], FRAME_PX)
        return image + torch.where(frame, outside, inside)

    photograph = picture()
    assert frame_score(paint, photograph, paint(photograph)) == pytest.approx(outside / inside, rel=1e-4)


def test_a_painter_that_looks_at_nothing_beyond_a_pixel_makes_no_frame() -> None:
    photograph = picture()
    assert frame_score(lambda image: 1 - image, photograph, 1 - photograph) == 1
    less_mean = photograph - photograph.mean((1, 2), keepdim=True)
    score = frame_score(lambda image: image - image.mean((2, 3), keepdim=True), photograph, less_mean)
    assert score == pytest.approx(1, rel=1e-3)  # what changes everywhere alike is no frame


def test_a_photograph_that_cannot_be_mirrored_around_has_no_score() -> None:
    assert frame_score(lambda image: image, picture(96, 64), picture(96, 64)) is None


@pytest.mark.parametrize(("painted", "style", "score"), ((0.1, 0.2, 0.5), (0.0, 0.2, 0.0), (0.3, 0.1, 3.0)))
def test_flats_have_the_standard_deviation_over_the_styles(painted: float, style: float, score: float) -> None:
    even = torch.full((3, 64, 64), 0.7)
    assert flats_score(checks(painted), even, texture_variance(checks(style))) == pytest.approx(score, abs=1e-6)


def test_only_even_windows_of_the_photograph_count() -> None:
    photograph, painted = torch.full((3, 32, 64), 0.5), checks(0.1, 32, 64).clone()
    photograph[:, :, 32:], painted[:, :, 32:] = checks(0.3, 32, 32), checks(0.4, 32, 32)
    # the window across the middle is not even, either
    assert flats_score(painted, photograph, 0.04) == pytest.approx(0.5, abs=1e-6)
    assert flats_score(painted, checks(0.3, 32, 64), 0.04) is None


@pytest.mark.parametrize("shift", (0.0, 0.5, 2.0))
def test_a_shift_of_one_channel_is_its_distance_over_the_spread(shift: float) -> None:
    x = picture()[:1, None].transpose(0, 1)
    assert StyleDistribution([x]).distance(x + shift) == pytest.approx(
        shift / float(x.std(correction=0)), rel=1e-3, abs=1e-6
    )


def test_sets_of_other_sizes_are_compared_by_their_quantiles() -> None:
    x = torch.linspace(0, 1, 4096).view(1, 1, 64, 64)
    twice_as_wide = 2 * torch.linspace(0, 1, 1024).view(1, 1, 32, 32)
    # quantiles q and 2q: the mean of q² is 1/3, the variance of the style's 1/12
    assert StyleDistribution([x]).distance(twice_as_wide) == pytest.approx(math.sqrt((1 / 3) / (1 / 12)), rel=1e-2)


def test_a_distance_sees_what_means_of_products_do_not() -> None:
    two, three = torch.tensor([-1.0, 1.0]).repeat(600), torch.tensor([-(1.5**0.5), 0.0, 1.5**0.5]).repeat(400)
    a, b = two.view(1, 1, 30, 40), three.view(1, 1, 30, 40)
    assert float(a.square().mean()) == pytest.approx(float(b.square().mean()))
    assert StyleDistribution([b]).distance(a) > 0.3


def test_the_pictures_of_a_style_are_one_distribution() -> None:
    x = torch.linspace(0, 1, 1024).view(1, 1, 32, 32)
    assert StyleDistribution([x[:, :, :16], x[:, :, 16:]]).distance(x) < 1e-3


@pytest.mark.parametrize("noise", (0.0, 0.1, 0.5))
def test_structural_similarity_is_that_of_scikit_image(noise: float) -> None:
    a = picture()
    b = (a + noise * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    x, y = (luminance(image[None])[0, 0].double().numpy() for image in (a, b))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    _, similarity = reference_ssim(x, y, **options)
    expected = similarity[5:-5, 5:-5].mean()  # its borders are padded
    assert structural_similarity(a[None], b[None]) == pytest.approx(expected, abs=1e-6)


def test_structural_similarity_of_even_pictures_is_that_of_their_brightness() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    assert structural_similarity(a, b) == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), abs=1e-6)


def test_a_feature_structure_distance_by_hand() -> None:
    photograph = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two places, orthogonal
    painting = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])  # two places, alike
    same = math.exp(2**0.5) / (math.exp(2**0.5) + 1)  # softmax of (√2, 0)
    expected = same * math.log(same / 0.5) + (1 - same) * math.log((1 - same) / 0.5)
    assert feature_structure_distance(painting, photograph) == pytest.approx(expected, rel=1e-5)
    assert feature_structure_distance(photograph, photograph) == pytest.approx(0, abs=1e-7)


# All together


def test_a_painting_has_all_measures_but_those_that_its_size_or_kind_does_not_have() -> None:
    torch.manual_seed(0)
    vgg = VGG19(5)
    measures = PaintingMeasures(vgg, ["relu1_1", "relu2_1"], [picture(64, 64, seed=1)])
    photograph = torch.cat([picture(), torch.full((3, 96, 40), 0.5)], 2)
    found = measures.measure(photograph, photograph, lambda image: image)
    assert list(found) == list(MEASURES)
    assert found["frame"] == 1 and found["ssim"] == pytest.approx(1) and found["cfsd"] == pytest.approx(0, abs=1e-6)
    assert found["flats"] == 0 and found["wasserstein"] > 0
    small = picture(24, 24)
    assert list(measures.measure(small, small, lambda image: image)) == ["wasserstein", "ssim", "cfsd"]
    assert "frame" not in measures.measure(photograph, photograph)


def test_the_style_itself_is_at_no_distance() -> None:
    torch.manual_seed(0)
    style = picture(64, 64, seed=1)
    measures = PaintingMeasures(VGG19(5), ["relu1_1"], [style])
    assert measures.measure(style, picture(64, 64))["wasserstein"] < 1e-3
