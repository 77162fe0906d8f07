"""Augmentation of minibatches: every image as torchvision would treat it alone, and the laws of the parameters."""

import inspect
import time

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from scipy import stats
from torchvision.transforms import InterpolationMode

from data import augment
from data.augment import RAW, RECIPES, Recipe, crop, erase, erasing_boxes, flip, rotate, shade, standardise, to_unit

SIZES = [(1, 28, 28), (3, 32, 32), (3, 20, 33)]
ALL = [*RECIPES.items(), ("everything", Recipe(3, 20.0, True, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (0.1, 0.2, 0.3)))]
CERTAIN = 1e-6  # a p-value below it is no accident
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
recipes = pytest.mark.parametrize("recipe", [recipe for _, recipe in ALL], ids=[name for name, _ in ALL])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, size: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, *size), dtype=torch.uint8, generator=seeded(seed))


def channels(recipe: Recipe) -> int:
    return max(len(recipe.mean), len(recipe.erase), 1)


def uniform(counts) -> bool:
    return stats.chisquare(np.asarray(counts).ravel()).pvalue > CERTAIN


def cut(image: torch.Tensor, top: int, left: int, padding: int) -> torch.Tensor:
    return reference.crop(reference.pad(image, [padding]), top, left, *image.shape[-2:])


def turned(image: torch.Tensor, degrees: float) -> torch.Tensor:
    return reference.rotate(image, degrees, InterpolationMode.NEAREST)


@sizes
@pytest.mark.parametrize("padding", [1, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_is_pad_and_crop(size, padding, dtype):
    side = 2 * padding + 1
    offsets = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    x = pictures(len(offsets), size).to(dtype)
    before = x.clone()
    ours = crop(x, offsets, padding)
    assert ours.dtype == dtype and torch.equal(x, before)
    expected = [cut(image, *offset, padding) for image, offset in zip(x, offsets.tolist(), strict=True)]
    assert torch.equal(ours, torch.stack(expected))


@sizes
def test_flip_mirrors_the_chosen_images(size):
    x = pictures(32, size)
    flipped = torch.rand(32, generator=seeded(1)) < 0.5
    before = x.clone()
    ours = flip(x, flipped)
    assert torch.equal(x, before)
    for image, mirrored, result in zip(x, flipped, ours, strict=True):
        assert torch.equal(result, reference.hflip(image) if mirrored else image)


@sizes
@pytest.mark.parametrize("degrees", [15, 180])
def test_rotate_is_that_of_torchvision(size, degrees):
    x = torch.rand(150, *size, generator=seeded()) + 0.5  # no pixel is black like the outside
    angles = degrees * (2 * torch.rand(150, generator=seeded(1)) - 1)
    expected = torch.stack([turned(image, angle) for image, angle in zip(x, angles.tolist(), strict=True)])
    differing = rotate(x, angles) != expected
    # where the source lies half-way between two pixels
    assert differing.any(1).double().mean() < 1e-3


@sizes
def test_rotation_by_right_angles(size):
    x = torch.rand(2, *size, generator=seeded())
    assert torch.equal(rotate(x, torch.zeros(2)), x)
    if size[1] == size[2]:
        assert torch.equal(rotate(x, torch.tensor([90.0, -90.0]))[0], x[0].rot90(1, (-2, -1)))
        assert torch.equal(rotate(x, torch.tensor([90.0, -90.0]))[1], x[1].rot90(-1, (-2, -1)))


@sizes
def test_erase_is_that_of_torchvision(size):
    x = torch.randn(200, *size, generator=seeded())
    boxes = erasing_boxes(200, *size[1:], seeded(1))
    boxes[:3] = torch.tensor([[0, 0, *size[1:]], [size[1] - 1, size[2] - 1, 1, 1], [2, 3, 0, 0]])
    value = torch.arange(size[0]).view(-1, 1, 1) + 5.0
    before = x.clone()
    ours = erase(x, boxes, value)
    assert torch.equal(x, before)
    expected = [reference.erase(x[i], *box, value) for i, box in enumerate(boxes.tolist())]
    assert torch.equal(ours, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@recipes
def test_normalise_is_that_of_torchvision(recipe, dtype):
    x = torch.rand(10, channels(recipe), 6, 7, generator=seeded(), dtype=dtype)
    ours = recipe.normalise(x)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, reference.normalize(x, recipe.mean, recipe.sd), rtol=1e-6, atol=1e-6)


def test_normalise_has_a_gradient_after_use_without():
    recipe = Recipe(mean=(0.4321,), sd=(0.1234,))  # not used elsewhere
    x = torch.ones(2, 1, 3, 3)
    with torch.no_grad():
        recipe.normalise(x)
    recipe.normalise(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 0.1234))


def test_to_unit():
    x = pictures(3, (3, 9, 10))
    unit = to_unit(x)
    assert unit.dtype == torch.float32 and unit.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(unit.double(), x.double() / 255, rtol=2e-7, atol=0)
    ends = to_unit(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    assert ends.flatten().tolist() == [0.0, 1.0]


def test_the_raw_recipe_only_scales():
    x, generator = pictures(5, (3, 8, 8)), seeded()
    state = generator.get_state()
    raw = RAW.augment(x, generator)
    assert torch.equal(raw, to_unit(x))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("padding", [1, 4])
def test_the_crop_is_uniform(padding):
    side, n = 2 * padding + 1, 50_000
    marked = torch.arange(81, dtype=torch.uint8).view(9, 9)  # a pixel names its place
    ours = Recipe(padding=padding).augment(marked.expand(n, 1, 9, 9), seeded())
    place = (ours[:, 0, 4, 4] * 255).round().long()  # where the centre came from
    offsets = torch.stack([place // 9, place % 9]) - 4 + padding
    assert offsets.min() == 0 and offsets.max() == side - 1
    assert uniform(torch.bincount(offsets[0] * side + offsets[1], minlength=side**2))


def test_half_of_the_images_are_flipped():
    n = 50_000
    ours = Recipe(flip=True).augment(torch.tensor([1, 2], dtype=torch.uint8).expand(n, 1, 1, 2), seeded())
    flipped = int((ours[:, 0, 0, 0] > ours[:, 0, 0, 1]).sum())
    assert uniform([flipped, n - flipped])


def calls(monkeypatch, name: str) -> list[dict]:
    """The arguments with which augment calls one of its functions, as they come."""
    function, seen = getattr(augment, name), []

    def spy(*args, **kwargs):
        seen.append(inspect.signature(function).bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    monkeypatch.setattr(augment, name, spy)
    return seen


def test_the_rotation_is_uniform(monkeypatch):
    seen, n = calls(monkeypatch, "rotate"), 50_000
    Recipe(degrees=15.0).augment(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), seeded())
    degrees = seen[0]["degrees"].double().numpy()
    assert abs(degrees).max() <= 15
    assert stats.kstest(degrees, stats.uniform(-15, 30).cdf).pvalue > CERTAIN


def slow_boxes(n: int, h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Heights and widths of random erasing, box by box, 0 where nothing is erased."""
    boxes = np.zeros((n, 2))
    for i in np.flatnonzero(rng.random(n) < 0.5):
        for _ in range(10):
            area, ratio = h * w * rng.uniform(0.02, 0.4), rng.uniform(0.3, 1 / 0.3)
            height, width = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if height < h and width < w:
                boxes[i] = height, width
                break
    return boxes


@pytest.mark.parametrize("h, w", [(32, 32), (28, 28), (12, 40), (41, 17)])
def test_the_law_of_the_erasing_boxes(h, w):
    n = 50_000
    boxes = erasing_boxes(n, h, w, seeded())
    assert boxes.shape == (n, 4) and boxes.dtype == torch.int64
    top, left, height, width = boxes.double().numpy().T
    erased = height > 0
    assert np.array_equal(erased, width > 0)
    top, left, height, width = top[erased], left[erased], height[erased], width[erased]
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= h).all() and (left + width <= w).all()
    # sides are rounded: the area lies between those of the sides half a pixel longer and shorter
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * h * w).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.4 * h * w).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all() and ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()
    # the place is uniform among those inside
    rng = np.random.default_rng(0)
    for start, side, whole in ((top, height, h), (left, width, w)):
        assert stats.kstest((start + rng.random(len(start))) / (whole - side + 1), "uniform").pvalue > CERTAIN
        assert (start == 0).any() and (start + side == whole).any()
    slow = slow_boxes(n, h, w, rng)
    kept = slow[slow[:, 0] > 0]
    assert uniform_shares(len(kept), erased.sum(), n)
    for ours, theirs in ((height, kept[:, 0]), (width, kept[:, 1]), (height * width, kept.prod(1))):
        assert same_law(ours, theirs)


def uniform_shares(a: int, b: int, n: int) -> bool:
    """Whether a of n and b of n can come from one probability."""
    return stats.chi2_contingency([[a, n - a], [b, n - b]]).pvalue > CERTAIN


def same_law(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two samples of whole numbers can come from one law."""
    edges = np.unique(np.quantile(b, np.linspace(0, 1, 21)[1:-1]))
    table = [np.bincount(np.digitize(x, edges), minlength=len(edges) + 1) for x in (a, b)]
    assert len(edges) >= 5
    return stats.chi2_contingency(np.array(table)[:, np.sum(table, 0) > 0]).pvalue > CERTAIN


@pytest.mark.parametrize("h, w", [(32, 32), (12, 40)])
def test_about_half_of_the_images_are_erased(h, w):
    """Among ten attempts one nearly always fits."""
    share = (erasing_boxes(50_000, h, w, seeded())[:, 2] > 0).double().mean()
    assert 0.48 < share < 0.51


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_the_probability_of_erasing(probability):
    n = 20_000
    erased = int((erasing_boxes(n, 32, 32, seeded(), probability, area=(0.1, 0.2), aspect=(0.5, 2.0))[:, 2] > 0).sum())
    assert erased == n * probability or stats.binomtest(erased, n, probability).pvalue > CERTAIN
    assert probability not in (0.0, 1.0) or erased == n * probability


def test_a_box_that_never_fits_erases_nothing():
    assert not erasing_boxes(100, 10, 10, seeded(), probability=1.0, area=(1.0, 1.5))[:, 2:].any()


@recipes
@pytest.mark.parametrize("h, w", [(28, 28), (20, 33)])
def test_a_recipe_gives_float_images_of_the_same_size(recipe, h, w):
    x = pictures(64, (channels(recipe), h, w))
    before = x.clone()
    ours = recipe.augment(x.contiguous(memory_format=torch.channels_last), seeded())
    assert ours.shape == x.shape and ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert ours.isfinite().all()
    assert torch.equal(recipe.augment(x, seeded()), ours)  # whatever the memory format
    assert torch.equal(x, before)


@recipes
def test_the_generator_decides(recipe):
    x = pictures(64, (channels(recipe), 28, 28))
    generator = seeded(3)
    torch.manual_seed(0)
    first, second = recipe.augment(x, generator), recipe.augment(x, generator)
    torch.manual_seed(1)
    assert torch.equal(recipe.augment(x, seeded(3)), first)
    assert not torch.equal(first, second)
    assert not torch.equal(recipe.augment(x, seeded(4)), first)


@recipes
def test_every_image_has_its_own_parameters(recipe):
    x = pictures(1, (channels(recipe), 28, 28)).expand(64, -1, -1, -1)
    different = recipe.augment(x, seeded()).flatten(1).unique(dim=0)
    choices = (2 * recipe.padding + 1) ** 2 * (2 if recipe.flip else 1)
    if recipe.degrees:
        choices = 1000  # close angles give the same pixels
    expected = choices * (1 - (1 - 1 / choices) ** 64)  # different ones of 64 drawn with replacement
    assert len(different) > 0.75 * expected


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("h, w", [(28, 28), (20, 33)])
def test_a_recipe_is_crop_flip_rotate_normalise_erase(monkeypatch, name, h, w):
    """With the parameters that it drew, image by image through torchvision."""
    recipe = RECIPES[name]
    seen = {name: calls(monkeypatch, name) for name in ("crop", "flip", "rotate", "erase")}
    x = pictures(200, (channels(recipe), h, w))
    ours = recipe.augment(x, seeded())
    drawn = {"crop": recipe.padding, "flip": recipe.flip, "rotate": recipe.degrees, "erase": recipe.erase}
    assert {name: len(found) for name, found in seen.items()} == {name: int(bool(on)) for name, on in drawn.items()}
    differing = 0
    for i, image in enumerate(x):
        if recipe.padding:
            image = cut(image, *seen["crop"][0]["offsets"][i].tolist(), recipe.padding)
        if recipe.flip and seen["flip"][0]["flipped"][i]:
            image = reference.hflip(image)
        image = image / 255
        if recipe.degrees:
            image = turned(image, seen["rotate"][0]["degrees"][i].item())
        image = reference.normalize(image, recipe.mean, recipe.sd)
        if recipe.erase:
            box = seen["erase"][0]["boxes"][i].tolist()
            image = reference.erase(image, *box, torch.tensor(recipe.erase)[:, None, None])
        differing += int(((image - ours[i]).abs() > 1e-5).sum())
    assert differing / x.numel() < (1e-3 if recipe.degrees else 1e-9)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.erase])
def test_erased_pixels_hold_the_value_of_erasing(name):
    """On the scale of normalised pixels: no black and no white image takes it otherwise."""
    recipe = RECIPES[name]
    value = torch.tensor(recipe.erase)[:, None, None]
    x = torch.full((500, channels(recipe), 32, 32), 255, dtype=torch.uint8)
    ours = recipe.augment(x, seeded())
    erased = (ours == value).all(1)
    ends = [recipe.normalise(torch.full((1, channels(recipe), 1, 1), end))[0] for end in (0.0, 1.0)]
    unerased = [torch.isclose(ours, end).all(1) for end in ends]  # the padding is black
    assert (erased.int() + unerased[0].int() + unerased[1].int() == 1).all()
    share = erased.flatten(1).double().mean(1)
    assert share[share > 0].min() > 0.015 and share.max() < 0.42
    assert 200 < (share > 0).sum() < 300


SHADED = Recipe(2, 0.0, True, brightness=63 / 255, contrast=(0.2, 1.8), standardise=True)
SHADES = [
    SHADED,
    Recipe(brightness=0.3),
    Recipe(contrast=(0.5, 1.5)),
    Recipe(1, 10.0, False, (0.4,), (0.3,), (0.2,), 0.1, (0.9, 1.1)),
    Recipe(2, 15.0, True, erase=(0.0,), contrast=(1.0, 2.0), standardise=True),
]


def shaded(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """TensorFlow's adjust_brightness, then adjust_contrast, of an image (h, w, c)."""
    image = image + brightness
    for channel in range(image.shape[2]):
        mean = image[:, :, channel].sum() / (image.shape[0] * image.shape[1])
        image[:, :, channel] = (image[:, :, channel] - mean) * contrast + mean
    return image


def standardised(image: np.ndarray) -> np.ndarray:
    """TensorFlow's per_image_standardization, of an image (h, w, c) with pixels in [0, 255]."""
    mean = image.sum() / image.size
    sd = (((image - mean) ** 2).sum() / image.size) ** 0.5
    return (image - mean) / max(sd, 1 / image.size**0.5)


def last(x: torch.Tensor) -> np.ndarray:
    """Channels last, as TensorFlow's."""
    return x.double().permute(1, 2, 0).numpy().copy()


def first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(2, 0, 1)


@sizes
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_shade_is_brightness_and_contrast(size, dtype, tolerance):
    x = torch.rand(20, *size, generator=seeded(), dtype=dtype)
    before, brightness = x.clone(), torch.linspace(-0.5, 0.5, 20, dtype=dtype)
    contrast = torch.linspace(0.2, 1.8, 20, dtype=dtype).flip(0)[torch.randperm(20, generator=seeded())]
    ours = shade(x, brightness, contrast)
    assert torch.equal(x, before) and ours.dtype == dtype
    expected = [first(shaded(last(x[i]), float(brightness[i]), float(contrast[i]))) for i in range(20)]
    torch.testing.assert_close(ours.double(), torch.stack(expected), rtol=0, atol=tolerance)
    assert ours.min() < -0.2 and ours.max() > 1.2  # nothing is clipped
    same = shade(x, torch.zeros(20, dtype=dtype), torch.ones(20, dtype=dtype))
    torch.testing.assert_close(same, x, rtol=0, atol=tolerance)


@sizes
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_standardise_is_that_of_tensorflow(size, dtype, tolerance):
    x = torch.rand(8, *size, generator=seeded(), dtype=dtype)
    x[1] = 0.25 + 0.001 * x[1]
    x[2] = x[2].round()
    x[3] = x[3, :1]
    before = x.clone()
    ours = standardise(x)
    assert torch.equal(x, before) and ours.dtype == dtype
    expected = torch.stack([first(standardised(255 * last(image))) for image in x])
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(Recipe(standardise=True).normalise(x), ours, rtol=0, atol=0)
    # by itself, whatever the others are
    torch.testing.assert_close(standardise(x[4:5]), ours[4:5], rtol=tolerance, atol=tolerance)


@sizes
def test_images_with_little_in_them_are_standardised_by_the_bound(size):
    x = torch.full((3, *size), 0.5, dtype=torch.float64)
    x[1, 0, 0, 0] += 0.5 / 255  # half a grey level in one pixel: the sd is half the bound
    x[2, 0, 0, :2] += 2 / 255  # above it
    ours, pixels = standardise(x), x[0].numel()
    assert torch.equal(ours[0], torch.zeros(size, dtype=torch.float64))
    assert ours[1].max().item() == pytest.approx(0.5 * (1 - 1 / pixels) * pixels**0.5, rel=1e-9)
    assert ours[2].std(correction=0).item() == pytest.approx(1.0, rel=1e-9)
    expected = torch.stack([first(standardised(255 * last(image))) for image in x])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_shades_are_uniform_and_of_every_image_alone(monkeypatch):
    seen, n = calls(monkeypatch, "shade"), 50_000
    Recipe(brightness=0.25, contrast=(0.2, 1.8)).augment(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), seeded())
    brightness, contrast = (seen[0][name].double().numpy() for name in ("brightness", "contrast"))
    assert abs(brightness).max() <= 0.25 and contrast.min() >= 0.2 and contrast.max() <= 1.8
    assert stats.kstest(brightness, stats.uniform(-0.25, 0.5).cdf).pvalue > CERTAIN
    assert stats.kstest(contrast, stats.uniform(0.2, 1.6).cdf).pvalue > CERTAIN
    assert stats.spearmanr(brightness, contrast).pvalue > CERTAIN
    assert stats.spearmanr(contrast[1:], contrast[:-1]).pvalue > CERTAIN


@pytest.mark.parametrize("recipe", SHADES, ids=range(len(SHADES)))
def test_a_shaded_recipe_is_its_steps_in_their_order(monkeypatch, recipe):
    seen = {name: calls(monkeypatch, name) for name in ("crop", "flip", "shade", "rotate", "erase")}
    x = pictures(60, (3, 20, 24))
    ours = recipe.augment(x, seeded())
    drawn = {
        "crop": recipe.padding,
        "flip": recipe.flip,
        "shade": True,
        "rotate": recipe.degrees,
        "erase": recipe.erase,
    }
    assert {name: len(found) for name, found in seen.items()} == {name: int(bool(on)) for name, on in drawn.items()}
    differing = 0
    for i, image in enumerate(x):
        if recipe.padding:
            image = cut(image, *seen["crop"][0]["offsets"][i].tolist(), recipe.padding)
        if recipe.flip and seen["flip"][0]["flipped"][i]:
            image = reference.hflip(image)
        brightness, contrast = (float(seen["shade"][0][name][i]) for name in ("brightness", "contrast"))
        assert abs(brightness) <= recipe.brightness and recipe.contrast[0] <= contrast <= recipe.contrast[1]
        image = first(shaded(last(image) / 255, brightness, contrast))
        if recipe.degrees:
            image = turned(image, seen["rotate"][0]["degrees"][i].item())
        if recipe.standardise:
            image = first(standardised(255 * last(image)))
        else:
            image = reference.normalize(image, recipe.mean, recipe.sd)
        if recipe.erase:
            box = seen["erase"][0]["boxes"][i].tolist()
            image = reference.erase(image, *box, torch.tensor(recipe.erase)[:, None, None])
        differing += int(((image - ours[i]).abs() > 1e-4).sum())
    assert differing / x.numel() < (2e-3 if recipe.degrees else 1e-9)


@pytest.mark.parametrize("recipe", SHADES, ids=range(len(SHADES)))
def test_the_generator_decides_the_shades(recipe):
    x, generator = pictures(64, (3, 20, 20)), seeded(3)
    before = x.clone()
    torch.manual_seed(0)
    one, two = recipe.augment(x, generator), recipe.augment(x, generator)
    torch.manual_seed(1)
    assert torch.equal(recipe.augment(x, seeded(3)), one) and torch.equal(x, before)
    assert not torch.equal(one, two) and not torch.equal(recipe.augment(x, seeded(4)), one)
    assert one.shape == x.shape and one.dtype == torch.float32
    assert one.is_contiguous(memory_format=torch.channels_last)
    same = recipe.augment(x[:1].expand(64, -1, -1, -1), seeded()).flatten(1)
    assert len(same.unique(dim=0)) > 60  # every image has its own shade


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("recipe", [*SHADES, ALL[-1][1]], ids=range(len(SHADES) + 1))
def test_processes_share_the_random_numbers_of_a_minibatch(recipe, world):
    x, generator = pictures(24, (3, 20, 24)), seeded()
    one, two = recipe.augment(x, generator), recipe.augment(x, generator)
    for rank in range(world):
        mine = seeded()
        for whole in (one, two):
            part = recipe.augment(x[rank::world], mine, rank, world)
            torch.testing.assert_close(part, whole[rank::world], rtol=1e-6, atol=1e-6)


def test_the_augmentation_without_shades_draws_what_it_drew_before():
    x = pictures(50, (3, 20, 20))
    recipe, generator = Recipe(2, 10.0, True), seeded()
    recipe.augment(x, generator)
    expected = seeded()
    (
        torch.randint(5, (50, 2), generator=expected),
        torch.rand(50, generator=expected),
        torch.rand(50, generator=expected),
    )
    assert torch.equal(generator.get_state(), expected.get_state())


@pytest.mark.slow
def test_augmentation_is_fast():
    x, generator = pictures(1000, (3, 32, 32)).contiguous(memory_format=torch.channels_last), seeded()
    seconds = []
    for _ in range(20):
        start = time.thread_time()  # not what other processes take
        RECIPES["cifar10"].augment(x, generator)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.05
