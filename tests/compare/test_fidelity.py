"""Figures of fidelity: against formulas worked out the long way, and at their edges."""

import numpy as np
import pytest

from sfumato.compare import frechet_distance, psnr, recall, ssim
from sfumato.errors import InvalidRequest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def picture(rng, height=20, width=17):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_psnr_of_a_constant_difference(rng):
    a = rng.integers(0, 200, (8, 9, 3), dtype=np.uint8)
    assert psnr(a, a + 10) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(a + 10, a) == psnr(a, a + 10)  # unsigned bytes do not wrap
    assert psnr(a, a) == np.inf


def test_ssim_follows_the_paper_window_by_window(rng):
    a = picture(rng)
    b = np.clip(a.astype(int) + rng.integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    axis = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(axis, axis) / np.outer(axis, axis).sum()
    values = []
    for channel in range(3):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                x, y = (p[top : top + 11, left : left + 11, channel].astype(float) for p in (a, b))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                values.append(
                    (2 * mx * my + 6.5025) * (2 * cov + 58.5225)
                    / ((mx**2 + my**2 + 6.5025) * (vx + vy + 58.5225))
                )  # fmt: skip
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)
    assert 0.1 < ssim(a, b) < 0.98
    assert ssim(a, a) == pytest.approx(1)


def test_pictures_that_cannot_be_compared_are_named(rng):
    with pytest.raises(InvalidRequest, match=r"\[20, 17, 3\] and uint8 \[20, 16, 3\]"):
        psnr(picture(rng), picture(rng, width=16))
    with pytest.raises(InvalidRequest, match="float64"):
        psnr(picture(rng), picture(rng) / 255)
    with pytest.raises(InvalidRequest, match="11 or more"):
        ssim(picture(rng, height=10), picture(rng, height=10))


def test_recall_counts_ranks():
    texts = np.eye(4)
    captions = ["a", "b", "c", "d"]
    images = np.array([[2.0, 0, 0, 0], [0, 0, 9, 0], [0, 0.1, 1, 0.2], [1, 1, 1, 0.1]])
    assert recall(images, texts, captions, 1) == 0.5
    assert recall(images, texts, captions, 2) == 0.5
    assert recall(images, texts, captions, 4) == 1
    assert recall(np.ones((4, 4)), texts, captions, 3) == 0  # what tells nothing apart finds nothing


def test_a_caption_that_reads_the_same_is_no_rival():
    texts = np.array([[1.0, 0], [1.0, 0], [0, 1]])
    images = np.array([[1.0, 0.1], [1.0, 0.1], [0, 1]])
    texts[1] += 1e-3 * images[1]
    assert recall(images, texts, ["apple", "apple", "pear"], 1) == 1
    assert recall(images, texts, ["apple", "red apple", "pear"], 1) < 1


def test_frechet_distance_of_known_gaussians(rng):
    """Axis-aligned: squared distance of means plus that of standard deviations."""
    x = rng.standard_normal((4000, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)
    a, b = x * [1, 2, 3] + [0, 1, 0], x[::-1] * [2, 2, 1] + [3, 1, 0]
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 0 + 4, rel=1e-9)


def test_frechet_distance_agrees_with_the_eigenvalues_of_the_product(rng):
    mix = rng.standard_normal((6, 6))
    a, b = rng.standard_normal((50, 6)) @ mix, rng.standard_normal((70, 6)) + 1
    product = np.cov(a.T) @ np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(product).real).sum()
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_with_fewer_samples_than_features(rng):
    a, b = rng.standard_normal((20, 64)), rng.standard_normal((20, 64))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) > 1
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    with pytest.raises(InvalidRequest, match="two rows"):
        frechet_distance(a[:1], b)
