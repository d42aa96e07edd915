"""Figures of fidelity, in NumPy alone: between two pictures, between pictures and captions, between sets.

LPIPS (Zhang et al. 2018) is not among them: the package `lpips` ships its linear weights only and downloads
the network below them. `Evaluator.distance` stands in for it: the same measure in the evaluator's layers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
SSIM_SIDE = 11


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; infinite where they agree."""
    _check_pair(a, b)
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 pictures [height, width, channels], 1 at best.

    Mean over the channels and over all 11x11 windows that lie inside, weighted by a Gaussian of sigma 1.5.
    """
    _check_pair(a, b)
    if a.ndim != 3 or min(a.shape[:2]) < SSIM_SIDE:
        raise InvalidRequest(
            f"pictures of shape {a.shape}: SSIM needs height and width of {SSIM_SIDE} or more"
        )
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _windows(x), _windows(y)
    variance_x = _windows(x * x) - mean_x**2
    variance_y = _windows(y * y) - mean_y**2
    covariance = _windows(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float(np.mean(luminance * structure))


def recall(images: NDArray[Any], texts: NDArray[Any], captions: list[str], k: int) -> float:
    """Share of pictures (R@k) that have their own caption among the `k` nearest by cosine.

    images, texts: embeddings [n, width] of pictures and of their captions, in one order. A caption that reads
    the same as the picture's own is no rival; one that is just as near counts as nearer.
    """
    images, texts = _unit(images), _unit(texts)
    similarity = images @ texts.T
    rivals = np.array([[a != b for b in captions] for a in captions])
    nearer = ~(similarity < np.diag(similarity)[:, None]) & rivals
    return float(np.mean(nearer.sum(1) < k))


def frechet_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Frechet distance (Heusel et al. 2017) of Gaussians fitted to features [n, width] and [m, width].

    The trace of the root of the covariances' product is the sum of the singular values of R_a R_b^T, where QR
    decomposition of the centred features gives R: exact in float64 also where there are fewer samples than
    features, without the root of a singular matrix. Few samples still bias it upwards: compare equal numbers.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InvalidRequest(
            f"features of shapes {a.shape} and {b.shape}: two rows or more of one width are needed"
        )
    means, roots = zip(*(_gaussian(x) for x in (a, b)), strict=True)
    spread = sum(float(np.sum(root**2)) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2)) + spread - 2 * shared)


def _gaussian(x: Floats) -> tuple[Floats, Floats]:
    """Mean [width], and R with R^T R = covariance [width, width]."""
    mean = x.mean(0)
    return mean, np.linalg.qr(x - mean, mode="r") / np.sqrt(len(x) - 1)


def _windows(x: Floats) -> Floats:
    """Gaussian means over the windows [height - 10, width - 10, channels] of [height, width, channels]."""
    offsets = np.arange(SSIM_SIDE) - SSIM_SIDE // 2
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, SSIM_SIDE, axis) @ weights
    return x


def _unit(x: NDArray[Any]) -> Floats:
    x = np.asarray(x, np.float64)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float64)


def _check_pair(a: Pixels, b: Pixels) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise InvalidRequest(
            f"pictures {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}: must be uint8 of one shape"
        )
