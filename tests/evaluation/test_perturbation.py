"""Curves against an oracle that walks pixel by pixel, classifiers with known answers, and what must always hold."""

import numpy as np
import pytest
import torch

from vbp.evaluation.perturbation import PERTURBATION, Perturbation
from vbp.evaluation.removal import Losses

SEED = 30
SIZE = 24
OBJECT = np.zeros((SIZE, SIZE), bool)
OBJECT[4:10, 5:13] = True


def seen(batch):
    """Class 1: the share of the object's pixels that are still 1."""
    share = (batch[:, 0] == 1)[:, torch.from_numpy(OBJECT)].double().mean(1)
    return torch.stack([1 - share, share], 1)


def flickering(batch):
    """A classifier of which nothing is known: a random layer on all pixels."""
    weights = torch.randn(3 * SIZE * SIZE, 5, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    return (batch.double().flatten(1) @ weights / 10).softmax(1)


def image():
    return torch.from_numpy(np.random.default_rng(SEED).standard_normal((3, SIZE, SIZE)).astype(np.float32))


def white():
    return torch.ones(3, SIZE, SIZE)


def saliency():
    return np.random.default_rng(SEED + 1).random((SIZE, SIZE))


def values(scores):
    return {score.metric: score.value for score in scores}


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_a_curve_against_a_walk_over_pixels(name):
    """All steps by hand: sort, set, classify, and add up trapezoids."""
    pixels, steps = image(), 6
    pixel_count = SIZE * SIZE
    brightest_first = sorted(np.ndindex(SIZE, SIZE), key=lambda place: -saliency()[place])
    other = Losses(pixels.numpy(), 500).emptied("blurred") if name == "insertion" else np.zeros((3, SIZE, SIZE))
    curve, shares = [], []
    for step in range(steps + 1):
        count = round(pixel_count * (step / steps) ** 2)
        picture = np.array(other if name == "insertion" else pixels.numpy())
        for row, column in brightest_first[:count]:
            picture[:, row, column] = (pixels.numpy() if name == "insertion" else other)[:, row, column]
        curve.append(float(flickering(torch.from_numpy(picture)[None])[0, 2]))
        shares.append(count / pixel_count)
    area = sum((b - a) * (p + q) / 2 for a, b, p, q in zip(shares, shares[1:], curve, curve[1:], strict=False))
    (score,) = Perturbation(pixels, 2, flickering, steps=steps).scores(saliency(), [name])
    assert score.value == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize(("name", "order"), [("irof", "most"), ("irof-least", "least"), ("pixel-flipping", "most")])
def test_a_curve_over_units_against_a_walk(name, order):
    pixels, steps = image(), 5
    losses = Losses(pixels.numpy(), 500)
    removal = "coloured" if name == "pixel-flipping" else "averaged"
    units, other = losses.units(removal), losses.emptied(removal)
    count = units.max() + 1
    bright = sorted(range(count), key=lambda unit: -saliency()[units == unit].mean())
    curve, shares = [], []
    for step in range(steps + 1):
        some = set(bright[: round(count * (step / steps) ** 2)])
        gone = np.isin(units, list(some if order == "most" else set(range(count)) - some))
        picture = np.where(gone, other, pixels.numpy())
        curve.append(float(flickering(torch.from_numpy(picture)[None])[0, 1]))
        shares.append(len(some) / count)
    area = sum((b - a) * (p + q) / 2 for a, b, p, q in zip(shares, shares[1:], curve, curve[1:], strict=False))
    whole = float(flickering(pixels[None])[0, 1])
    expected = whole - area if name == "pixel-flipping" else 1 - area / whole
    (score,) = Perturbation(pixels, 1, flickering, steps=steps).scores(saliency(), [name])
    assert score.value == pytest.approx(expected, abs=1e-9)


def test_road_is_the_mean_over_its_shares():
    pixels, removed = image(), (0.2, 0.7)
    losses = Losses(pixels.numpy(), 500)
    bright = np.argsort(-saliency().ravel())
    most, least = [], []
    for share in removed:
        count = round(share * SIZE * SIZE)
        for pick, found in ((bright[:count], most), (bright[-count:], least)):
            gone = np.zeros(SIZE * SIZE, bool)
            gone[pick] = True
            filled = losses.without(gone.reshape(1, SIZE, SIZE), "imputed")
            found.append(float(flickering(torch.from_numpy(filled))[0, 0]))
    scores = Perturbation(pixels, 0, flickering, removed=removed).scores(
        saliency(), ["road", "road-most", "road-least"]
    )
    assert values(scores) == pytest.approx(
        {"road": np.mean(least) - np.mean(most), "road-most": np.mean(most), "road-least": np.mean(least)}, abs=1e-9
    )


def test_a_map_of_the_object_against_a_classifier_that_counts_its_pixels():
    """The area under a curve that falls in a straight line to its end at the object's share, but for the steps."""
    share = OBJECT.mean()
    scores = values(Perturbation(white(), 1, seen, steps=200).scores(OBJECT.astype(float), ["deletion", "insertion"]))
    assert scores["deletion"] == pytest.approx(share / 2, abs=1e-3)
    assert scores["insertion"] == 1  # a blurred white image is white


@pytest.mark.parametrize("steps", [8, 16])
def test_few_steps_see_a_small_object(steps):
    """Relative to the true area: the object is a twelfth of the image."""
    value = Perturbation(white(), 1, seen, steps=steps).scores(OBJECT.astype(float), ["deletion"])[0].value
    assert value == pytest.approx(OBJECT.mean() / 2, abs=0.5 / steps**2)


def test_every_metric_prefers_the_object_to_its_surroundings_and_chance_lies_between():
    """A classifier that sees how bright the object is, on an image that is bright there only."""
    pixels = torch.from_numpy(np.where(OBJECT, 3.0, -0.3).astype(np.float32)).expand(3, SIZE, SIZE).contiguous()

    def classify(batch):
        p = batch.double()[:, 0][:, torch.from_numpy(OBJECT)].clamp(0, 3).mean(1) / 3
        return torch.stack([1 - p, p], 1)

    perturbation = Perturbation(pixels, 1, classify)
    good = {score.metric: score for score in perturbation.scores(OBJECT.astype(float))}
    bad = values(perturbation.scores((~OBJECT).astype(float)))
    assert set(good) == set(PERTURBATION)
    for name, score in good.items():
        higher_is_better = name not in ("deletion", "road-most", "pixel-flipping-least", "irof-least")
        assert (score.value > score.chance) == higher_is_better, name
        assert (bad[name] < score.chance) == higher_is_better, name


def test_chance_is_the_mean_of_smooth_noise_over_both_orders():
    perturbation = Perturbation(image(), 0, flickering)
    noise = Losses(image().numpy(), 500).noise_HW
    names = [name for name in PERTURBATION if name not in ("insertion", "deletion", "road")]
    for name in names:
        twin = name.removesuffix("-most").removesuffix("-least")
        pair = {"road": ["road-most", "road-least"]}.get(twin, [twin, f"{twin}-least"])
        both = values(perturbation.scores(noise, pair))
        (score,) = perturbation.scores(saliency(), [name])
        assert score.chance == pytest.approx(np.mean(list(both.values())), abs=1e-9)


def test_a_flat_map_goes_in_the_order_of_chance():
    perturbation = Perturbation(image(), 0, flickering)
    noise = Losses(image().numpy(), 500).noise_HW
    assert values(perturbation.scores(np.zeros((SIZE, SIZE)))) == values(perturbation.scores(noise))


def test_the_reverse_map_gives_the_other_order():
    perturbation = Perturbation(image(), 0, flickering)
    there, back = values(perturbation.scores(saliency())), values(perturbation.scores(-saliency()))
    assert there["road-most"] == pytest.approx(back["road-least"], abs=1e-12)
    assert there["road"] == pytest.approx(-back["road"], abs=1e-12)


def test_the_gap_of_maps_that_know_nothing_is_zero_in_the_mean():
    generator = np.random.default_rng(SEED)
    perturbation = Perturbation(image(), 0, flickering, removed=(0.2, 0.8))
    gaps = [perturbation.scores(generator.random((SIZE, SIZE)), ["road"])[0].value for _ in range(24)]
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / 24**0.5


def test_brightness_and_batches_change_nothing():
    sizes = []

    def counted(batch):
        sizes.append(len(batch))
        return flickering(batch)

    expected = values(Perturbation(image(), 0, flickering).scores(saliency()))
    assert values(Perturbation(image(), 0, counted, batch=7).scores(9 * saliency())) == pytest.approx(
        expected, abs=1e-12
    )
    assert max(sizes) == 7


def test_chance_and_ends_are_found_once_for_all_maps():
    passes = []

    def counted(batch):
        passes.append(len(batch))
        return flickering(batch)

    perturbation = Perturbation(image(), 0, counted, steps=16)
    perturbation.scores(saliency(), ["deletion", "road"])
    passes.clear()
    perturbation.scores(saliency().T, ["deletion", "road"])
    assert sum(passes) == 15 + 2 * 5


def test_no_metric_is_no_score():
    assert Perturbation(image(), 0, flickering).scores(saliency(), []) == []


def test_settings_say_what_a_number_depends_on():
    scores = Perturbation(image(), 0, flickering, steps=4, seed=9).scores(saliency(), ["deletion", "road"])
    assert [score.settings for score in scores] == [
        "pixels by 0, steps 4, seed 9",
        "pixels by neighbours, noise 0.01, removed 0.1 0.3 0.5 0.7 0.9, seed 9",
    ]


def test_a_plain_image_is_one_region_and_still_scored():
    scores = Perturbation(torch.zeros(3, SIZE, SIZE), 0, flickering).scores(saliency(), ["irof", "pixel-flipping"])
    assert all(np.isfinite(score.value) for score in scores)


@pytest.mark.parametrize(
    ("found", "message"),
    [(np.ones((SIZE, SIZE + 1)), r"saliency_HW \(24, 25\)"), (np.full((SIZE, SIZE), np.nan), "not finite")],
)
def test_what_is_refused(found, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(image(), 0, flickering).scores(found)
