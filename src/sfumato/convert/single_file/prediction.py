"""What a UNet predicts, noise or velocity: its shapes don't say."""

import logging
from collections.abc import Mapping
from typing import Any

from ...errors import InvalidRequest
from ..defaults import PREDICTIONS
from ..tensors import Store
from .kinds import DDIM, INPAINTING, SD2, V_SIDE, Kind
from .sections import Section

log = logging.getLogger(__name__)

# ModelSpec 1.0: https://github.com/Stability-AI/ModelSpec
STATED = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
# Training for v-prediction spread this norm's biases. Known from UIs that tell Stable Diffusion 2's two
# models, and their descendants, apart by it.
TELLING = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
SPREAD = 0.09


def predicts(given: str | None, kind: Kind, section: Section, store: Store) -> str:
    """epsilon or v_prediction: as given, as the file states, or as Stable Diffusion 2's weights suggest."""
    if given is not None:
        if given not in PREDICTIONS:
            raise InvalidRequest(f"prediction {given!r}: must be one of {', '.join(PREDICTIONS)}")
        return given
    stated = _stated(store)
    if stated is not None:
        return stated
    if kind is not SD2 or section.shape("input_blocks.0.0.weight")[1] == INPAINTING:
        return "epsilon"
    guessed = _guessed(section)
    log.info("%s: taken for a model of %s; --prediction says otherwise", store.path, guessed)
    return guessed


def predicting(prediction: str, kind: Kind, store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scheduler's configuration and what changes in the denoiser's."""
    if prediction == "epsilon":
        return dict(kind.scheduler), {}
    scheduler: Mapping[str, Any] = (
        DDIM if kind.scheduler["_class_name"] == "PNDMScheduler" else kind.scheduler
    )
    terminal = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return (
        {**scheduler, "prediction_type": prediction, **(terminal if "ztsnr" in store.tensors() else {})},
        {"sample_size": V_SIDE} if kind is SD2 else {},
    )


def _stated(store: Store) -> str | None:
    prediction = STATED.get(store.metadata.get("modelspec.prediction_type", "").lower())
    if prediction is None and "v_pred" in store.tensors():
        return "v_prediction"
    return prediction or ARCHITECTURES.get(store.metadata.get("modelspec.architecture", ""))


def _guessed(section: Section) -> str:
    stored = section.tensors.get(TELLING)
    if stored is None:
        return "v_prediction"
    return "v_prediction" if stored.read().float().std(correction=0) > SPREAD else "epsilon"
