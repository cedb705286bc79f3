import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from stylize.errors import StylizeError
from stylize.pictures.reading import read_rgb
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import (
    ContentConfig,
    check_folder,
    find_photographs,
    sample_photographs,
    validation_images,
)

installed = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None or importlib.util.find_spec("sklearn") is None,
    reason="scikit-image and scikit-learn (stylize[demo]) are not installed",
)


@pytest.fixture(autouse=True)
def even_photographs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here photographs are even, and told apart by their level."""
    for module in ("loader", "photographs"):
        monkeypatch.setattr(f"stylize.training.{module}.pixels_have_contrast", lambda pixels: True)


def flat_photographs(folder: Path, count: int) -> list[Path]:
    """Photograph number i is gray of level i."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:03}.png" for i in range(count)]
    for i, file in enumerate(files):
        Image.new("RGB", (24, 20), (i, i, i)).save(file)
    return files


def noisy_photographs(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:03}.png" for i in range(count)]
    for file in files:
        Image.fromarray((torch.rand(20, 30, 3) * 255).byte().numpy()).save(file)
    return files


def config(path: Path | str = "photos", **options: object) -> ContentConfig:
    return ContentConfig(**{"path": str(path), "resize": 20, "crop": 16, **options})


def batches(files: list[Path], seed: int = 0, size: int = 4, workers: int = 0) -> Batches:
    return Batches(CropDataset(files, config(), seed), size, workers)


def steps(stream: Batches, first: int, last: int) -> Tensor:
    return torch.stack(list(stream.from_step(first, last)))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StylizeError) as caught:
        call()
    return str(caught.value)


def test_batches_are_bytes_of_the_configured_crop(tmp_path: Path) -> None:
    found = steps(batches(noisy_photographs(tmp_path, 5)), 0, 3)
    assert found.shape == (3, 4, 3, 16, 16)
    assert found.dtype == torch.uint8


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(tmp_path: Path) -> None:
    files = noisy_photographs(tmp_path, 6)
    first = steps(batches(files, seed=1), 0, 4)
    torch.manual_seed(7)
    assert torch.equal(steps(batches(files, seed=1), 0, 4), first)
    assert not torch.equal(steps(batches(files, seed=2), 0, 4), first)


def test_batches_from_a_later_step_continue_identically(tmp_path: Path) -> None:
    files = noisy_photographs(tmp_path, 6)
    whole = steps(batches(files), 0, 7)
    for step in (1, 3, 6):
        assert torch.equal(steps(batches(files), step, 7), whole[step:])


def test_workers_do_not_change_the_batches(tmp_path: Path) -> None:
    files = noisy_photographs(tmp_path, 6)
    alone = steps(batches(files), 1, 6)
    assert torch.equal(steps(batches(files, workers=2), 1, 6), alone)


def test_the_global_random_state_is_left_alone_while_crops_are_drawn(tmp_path: Path) -> None:
    dataset = CropDataset(noisy_photographs(tmp_path, 3), config(), 0)
    state = torch.get_rng_state()
    dataset[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_every_epoch_sees_every_photograph_once_in_another_order(tmp_path: Path) -> None:
    files = flat_photographs(tmp_path, 10)
    seen = steps(batches(files, size=5), 0, 6)[:, :, 0, 0, 0].reshape(3, 10).tolist()
    assert all(sorted(epoch) == list(range(10)) for epoch in seen)
    assert seen[0] != seen[1] != seen[2]


def test_epochs_need_not_be_a_multiple_of_the_batch(tmp_path: Path) -> None:
    files = flat_photographs(tmp_path, 3)
    seen = steps(batches(files, size=4), 0, 3)[:, :, 0, 0, 0].reshape(4, 3).tolist()
    assert all(sorted(epoch) == [0, 1, 2] for epoch in seen)


def test_crops_lie_everywhere_and_half_of_them_are_mirrored(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20))
    image.putdata([(x * 10, y * 10, 0) for y in range(20) for x in range(20)])
    image.save(tmp_path / "a.png")
    crops = steps(batches([tmp_path / "a.png"], size=200), 0, 1)[0]
    left, right = crops[:, 0, 0, 0] // 10, crops[:, 0, 0, -1] // 10
    assert torch.minimum(left, right).unique().tolist() == [0, 1, 2, 3, 4]
    assert (crops[:, 1, 0, 0] // 10).unique().tolist() == [0, 1, 2, 3, 4]
    assert set((left.int() - right.int()).tolist()) == {15, -15}
    assert 70 < (left > right).sum() < 130


def one_unreadable(folder: Path, count: int) -> tuple[list[Path], str]:
    files = flat_photographs(folder, count)
    files[3].write_text("no image")
    return files, f"{files[3]}: not an image of a known format"


def test_an_unreadable_photograph_is_skipped_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, message = one_unreadable(tmp_path, 40)
    stream = batches(files)
    with caplog.at_level(logging.WARNING, "stylize"):
        seen = steps(stream, 0, 20)[:, :, 0, 0, 0].flatten().tolist()
    assert stream.unreadable == {message}
    assert caplog.messages == [f"skipped: {message}"]
    assert len(seen) == 80
    assert set(seen) == set(range(40)) - {3}


@pytest.mark.parametrize("workers", (0, 2))
def test_an_unreadable_photograph_is_always_replaced_by_the_same(tmp_path: Path, workers: int) -> None:
    files, _ = one_unreadable(tmp_path, 40)
    expected = steps(batches(files), 0, 10)
    assert torch.equal(steps(batches(files, workers=workers), 0, 10), expected)
    assert torch.equal(steps(batches(files), 4, 10), expected[4:])


@pytest.mark.parametrize("workers", (0, 2))
def test_more_than_a_twentieth_unreadable_stops_with_the_list(tmp_path: Path, workers: int) -> None:
    files, message = one_unreadable(tmp_path, 19)
    assert refusal(lambda: steps(batches(files, workers=workers), 0, 10)) == (
        f"1 of 19 photographs cannot be read: {message}"
    )


@pytest.mark.parametrize("workers", (0, 2))
def test_no_readable_photograph_at_all_stops_with_the_list(tmp_path: Path, workers: int) -> None:
    files = flat_photographs(tmp_path, 3)
    for file in files:
        file.write_text("no image")
    listed = "; ".join(f"{file}: not an image of a known format" for file in files)
    assert refusal(lambda: steps(batches(files, workers=workers), 0, 1)) == (
        f"3 of 3 photographs cannot be read: {listed}"
    )


def test_validation_photographs_are_drawn_by_the_seed_and_not_trained_on(tmp_path: Path) -> None:
    files = flat_photographs(tmp_path, 12)
    first = find_photographs(config(tmp_path, validation=4), seed=0)
    assert find_photographs(config(tmp_path, validation=4), seed=0) == first
    assert find_photographs(config(tmp_path, validation=4), seed=1).validation != first.validation
    assert len(first.validation) == 4
    assert sorted(first.training + first.validation) == files
    assert first.training == sorted(first.training)


def test_no_validation_photographs_leave_all_to_train_on(tmp_path: Path) -> None:
    files = flat_photographs(tmp_path, 3)
    assert find_photographs(config(tmp_path, validation=0), seed=0) == (files, [])


def test_validation_photographs_may_have_a_folder_of_their_own(tmp_path: Path) -> None:
    training = flat_photographs(tmp_path / "training", 3)
    held_out = flat_photographs(tmp_path / "held-out", 2)
    found = find_photographs(config(tmp_path / "training", validation=str(tmp_path / "held-out")), seed=0)
    assert found == (training, held_out)


def test_a_validation_folder_inside_the_content_is_not_trained_on(tmp_path: Path) -> None:
    training = flat_photographs(tmp_path, 3)
    held_out = flat_photographs(tmp_path / "held-out", 2)
    found = find_photographs(config(tmp_path, validation=str(tmp_path / "held-out")), seed=0)
    assert found == (training, held_out)


def test_the_limit_counts_photographs_to_train_on(tmp_path: Path) -> None:
    flat_photographs(tmp_path, 12)
    whole = find_photographs(config(tmp_path, validation=4), seed=0)
    limited = find_photographs(config(tmp_path, validation=4, limit=5), seed=0)
    assert limited.validation == whole.validation
    assert len(limited.training) == 5
    assert set(limited.training) <= set(whole.training)


def test_the_limit_draws_by_the_seed_and_smaller_limits_are_subsets(tmp_path: Path) -> None:
    files = flat_photographs(tmp_path, 60)

    def limited(limit: int, seed: int) -> list[Path]:
        return find_photographs(config(tmp_path, validation=0, limit=limit), seed).training

    draws = [limited(20, seed) for seed in range(4)]
    assert [len(draw) for draw in draws] == [20] * 4
    assert len({tuple(draw) for draw in draws}) == 4
    assert len(set().union(*draws)) > 40  # from the whole folder, not only its beginning
    assert limited(20, 0) == draws[0] == sorted(draws[0])
    for smaller, larger in ((1, 5), (5, 20), (20, 59)):
        assert set(limited(smaller, 1)) < set(limited(larger, 1))
    assert limited(60, 0) == limited(100, 0) == files


@pytest.mark.parametrize("key", ("content.path", "content.validation"))
def test_missing_and_empty_folders_are_refused(tmp_path: Path, key: str) -> None:
    flat_photographs(tmp_path / "photos", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()

    def find(folder: Path) -> object:
        paths = {"path": str(tmp_path / "photos"), key.removeprefix("content."): str(folder)}
        return find_photographs(config(**paths), seed=0)

    missing, empty = tmp_path / "missing", tmp_path / "empty"
    assert refusal(lambda: find(missing)) == (f"{key}: got '{missing}', must be a folder of photographs that exists")
    assert refusal(lambda: find(empty)) == (
        f"{key}: {empty} holds no image files (jpg, png, webp, tiff, gif, avif, bmp, ppm)"
    )


@pytest.mark.parametrize("validation", (1, 5))
def test_holding_out_the_only_photograph_is_refused(tmp_path: Path, validation: int) -> None:
    flat_photographs(tmp_path, 1)
    assert refusal(lambda: find_photographs(config(tmp_path, validation=validation), seed=0)) == (
        f"content.validation: got {validation}, must leave photographs to train on: {tmp_path} holds 1"
    )


def test_a_quarter_is_held_out_and_told_where_none_would_be_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat_photographs(tmp_path, 8)
    found = find_photographs(config(tmp_path, validation=16), seed=0)
    assert (len(found.training), len(found.validation)) == (6, 2)
    assert caplog.messages == ["content.validation: got 16, but there are 8 photographs: 2 are held out"]


def test_a_crop_larger_than_the_photographs_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        config(resize=64, crop=65)
    assert caught.value.errors()[0]["msg"] == (
        "Value error, got a crop of 65, must be at most resize (64): it would be larger than every photograph"
    )


@pytest.mark.parametrize("options", ({"validation": -1}, {"workers": -1}, {"limit": 0}, {"crop": 8}, {"pth": "photos"}))
def test_values_out_of_range_are_refused_by_the_config(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**options)


def test_samples_without_their_packages_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(lambda: find_photographs(config("samples"), seed=0)) == (
        "content.path: got 'samples', but their packages are not installed: "
        "pip install 'stylize[demo]', or give a folder of photographs"
    )


@installed
def test_samples_of_the_installed_packages_can_be_read() -> None:
    found = sample_photographs()
    assert len(found) >= 6
    assert all(min(read_rgb(file, 32).size) == 32 for file in found)


def test_validation_images_are_the_middle_squares(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 30, 20))
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    with caplog.at_level(logging.WARNING, "stylize"):
        images = validation_images([tmp_path / "a.png", tmp_path / "b.png"], 20)
    assert len(images) == 1
    assert images[0].shape == (3, 20, 20)
    assert images[0].flatten(1).unique(dim=1).tolist() == [[0], [0], [1]]
    assert caplog.messages == [f"skipped: {tmp_path / 'b.png'}: not an image of a known format"]


def test_checking_a_folder_counts_sizes_small_and_unreadable_files(tmp_path: Path) -> None:
    files, message = one_unreadable(tmp_path, 4)
    Image.new("RGB", (100, 80)).save(files[0])
    report = check_folder(files, 32, progress=lambda listed: listed)
    assert report == (4, [(100, 80), (24, 20), (24, 20)], [message], 2, [])
