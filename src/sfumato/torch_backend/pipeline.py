"""A diffusers checkpoint in PyTorch, float32, on the CPU, whose every picture is timed."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

from PIL.Image import Image

from ..compare.records import Model, Run
from ..compare.stopwatch import Stopwatch
from ..convert.checkpoints import Checkpoint, Json, Part, open_checkpoint
from ..convert.checks import check_source
from ..convert.defaults import T5_TOKENS, latent_space, sampling, takes_mask
from ..convert.tensors import Stored
from ..errors import CheckpointError, InvalidRequest, MissingDependency
from ..families import FAMILIES, TEXT_KINDS
from ..manifest import LatentSpace
from ..runtime import values
from ..runtime.samplers import MAX_STEPS

DECODER = ("decoder.", "post_quant_conv.")
"""What the tensors of a VAE's decoder begin with."""
PRECISIONS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}
NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")


class TorchPipeline:
    """A checkpoint as diffusers runs it, with its own scheduler.

    The initial noise of a seed is that of Sfumato's pipelines, so a picture is the same as that of the model
    folder made of the checkpoint; but for long prompts, which diffusers cuts, and weighted words, which it
    reads as they are written.
    """

    load_seconds = 0.0  # nothing is left to the first picture

    def __init__(self, pipe: Any, model: Model, space: LatentSpace, options: Json) -> None:
        """Take a diffusers pipeline; options: what all its calls are given."""
        self.model = model
        self._pipe = pipe
        self._space = space
        self._options = options
        self._watch = Stopwatch("")
        self._encode = 0.0
        for name, module in _networks(pipe).items():
            _observe(module, partial(self._ran, name))
        pipe.encode_prompt = self._timed(pipe.encode_prompt)

    @classmethod
    def load(
        cls, source: str | Path, *, name: str | None = None, threads: int | None = None
    ) -> "TorchPipeline":
        """Load a diffusers folder, or a model on the Hub as `org/name`, from safetensors only.

        threads: processor threads; None leaves it to PyTorch. Missing parts that a family can do without stay
        missing, and there is no safety checker. Raises CheckpointError for what cannot be read or does not
        make pictures of prompts, and MissingDependency without the `convert` extra.
        """
        if threads is not None:
            values.whole("threads", threads, 1, 4096)
        try:
            import diffusers
            import torch

            checkpoint = open_checkpoint(_folder(source))
            space = _space(checkpoint)
            if threads is not None:
                torch.set_num_threads(threads)
            pipe = _loaded(checkpoint, diffusers, torch)
        except ModuleNotFoundError as error:
            raise MissingDependency(
                f"torch:{source}: PyTorch's pipelines need the package {error.name!r}; "
                "install it with `pip install 'sfumato[convert]'`"
            ) from error
        name = name or checkpoint.folder.resolve().name
        model = described(checkpoint, space, f"torch:{source}", name)
        return cls(pipe, model, space, _options(checkpoint, pipe))

    def generate(
        self,
        prompt: str,
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Image, Run]:
        """One picture, and what it took; None is the model's default. Raises InvalidRequest."""
        import torch

        steps = values.whole("steps", self.model.steps if steps is None else steps, 1, MAX_STEPS)
        guidance = self.model.guidance if guidance is None else guidance
        guidance = values.guidance("guidance", guidance)
        width, height = values.size(size or self._space.default_size, self._space)
        seed = values.whole("seed", seed, 0, values.MAX_SEED)
        watch = self._watch = Stopwatch(FAMILIES[self.model.family].denoiser)
        began = time.perf_counter()
        result = self._pipe(
            prompt,
            negative_prompt=negative,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=partial(_step_done, watch),
            **self._options,
        )
        ended = time.perf_counter()
        image: Image = result.images[0]
        return image, Run(
            encode=self._encode,
            steps=watch.steps,
            denoise=watch.marks[-1] - watch.marks[0],
            decode=ended - watch.marks[-1],
            total=ended - began,
            components=watch.components,
        )

    def profile(self) -> NoReturn:
        """Raise InvalidRequest: single operations are told by OpenVINO alone."""
        raise InvalidRequest(f"{self.model.name}: no profile; only model folders have one")

    def _ran(self, name: str, began: float, ended: float) -> None:
        self._watch.ran(name, began, ended)

    def _timed(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            encoded = encode(*arguments, **options)
            self._encode = time.perf_counter() - began
            return encoded

        return timed


def described(checkpoint: Checkpoint, space: LatentSpace, source: str, name: str) -> Model:
    """What a checkpoint is, before anything is measured. Its precision is that on the disk."""
    sampler = sampling(checkpoint.family, checkpoint.scheduler, checkpoint.index)
    return Model(
        name=name,
        source=source,
        kind="torch",
        family=checkpoint.family.name,
        precision=_precision(checkpoint.parts[checkpoint.family.denoiser]),
        components=_component_bytes(checkpoint),
        disk_bytes=_disk_bytes(checkpoint),
        size=space.default_size,
        steps=sampler.steps,
        guidance=sampler.guidance,
        latent_channels=space.channels,
    )


def _folder(source: str | Path) -> Path:
    hub_id = check_source(source)
    path = Path(source)
    if hub_id is not None:
        from ..convert.hub import fetch

        path = fetch(hub_id)
    if path.is_file():
        raise CheckpointError(
            f"torch:{source}: a single file; give a diffusers folder, or convert it and compare that"
        )
    return path


def _space(checkpoint: Checkpoint) -> LatentSpace:
    """The latents of a checkpoint that makes pictures of prompts alone."""
    family, vae = checkpoint.family, checkpoint.parts["vae"].config
    denoiser = checkpoint.parts[family.denoiser].config
    if takes_mask(denoiser, vae) or checkpoint.index.get("requires_aesthetics_score"):
        raise InvalidRequest(
            f"{checkpoint.folder}: an inpainting model or refiner, which begins with a picture; give a "
            "checkpoint that makes pictures of prompts"
        )
    return latent_space(family, denoiser, vae)


def _loaded(checkpoint: Checkpoint, diffusers: Any, torch: Any) -> Any:
    files = [file.name for part in checkpoint.parts.values() for file in part.files]
    pipeline_class = getattr(diffusers, checkpoint.family.pipeline_classes[0])
    _quiet(diffusers)
    try:
        pipe = pipeline_class.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            variant="fp16" if any(".fp16." in file for file in files) else None,
            **dict.fromkeys(_absent(checkpoint) & set(signature(pipeline_class.__init__).parameters)),
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{checkpoint.folder}: diffusers cannot load it ({reason})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _absent(checkpoint: Checkpoint) -> set[str]:
    """What the pipeline takes and does without, though model_index.json may name it."""
    absent = set(NOT_NEEDED)
    for component in checkpoint.family.components:
        if component.kind in TEXT_KINDS and component not in checkpoint.components:
            absent |= {component.name, component.tokenizer or component.name}
    return absent


def _quiet(diffusers: Any) -> None:
    """Keep the libraries' progress bars and advice off standard error."""
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _options(checkpoint: Checkpoint, pipe: Any) -> Json:
    """SD3's length of the T5 part, as in model folders: attention is unmasked, so it changes the picture."""
    if not hasattr(pipe, "tokenizer_3"):
        return {}
    limit = T5_TOKENS if pipe.tokenizer_3 is None else min(T5_TOKENS, pipe.tokenizer_3.model_max_length)
    return {"max_sequence_length": checkpoint.index.get("t5_tokens", limit)}


def _networks(pipe: Any) -> dict[str, Any]:
    """The modules that a picture of a prompt needs, by the components' names in model folders."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer")
    found = {name: getattr(pipe, name, None) for name in names}
    return {name: module for name, module in found.items() if module is not None} | {
        "vae_decoder": pipe.vae.decoder
    }


def _observe(module: Any, ran: Callable[[float, float], None]) -> None:
    """Tell `ran` when each of a module's calls began and ended."""
    began = [0.0]

    def before(*_: Any) -> None:
        began[0] = time.perf_counter()

    def after(*_: Any) -> None:
        ran(began[0], time.perf_counter())

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _step_done(watch: Stopwatch, pipe: Any, index: int, timestep: Any, tensors: Json) -> Json:
    watch.step()
    return {}


def _precision(part: Part) -> str:
    """How most of a part's weights are stored: "fp16", "bf16" or "fp32"."""
    weights: Counter[str] = Counter()
    for tensor in part.tensors.values():
        weights[tensor.dtype] += math.prod(tensor.shape)
    most = weights.most_common(1)[0][0]
    return PRECISIONS.get(most, most)


def _component_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of weights by component; the VAE's two halves apart, as in model folders."""
    found = {}
    for component in checkpoint.components:
        tensors = checkpoint.part_of(component).tensors
        if component.kind in ("vae_encoder", "vae_decoder"):
            wanted = component.kind == "vae_decoder"
            tensors = {name: each for name, each in tensors.items() if name.startswith(DECODER) == wanted}
        found[component.name] = sum(map(_bytes, tensors.values()))
    return found


def _bytes(tensor: Stored) -> int:
    bits = re.search("[0-9]+", tensor.dtype)  # "BF16", "F8_E4M3"; a BOOL takes a byte
    return math.prod(tensor.shape) * (int(bits[0]) if bits else 8) // 8


def _disk_bytes(checkpoint: Checkpoint) -> int:
    """The weights that are read, and the tokenizers."""
    files = {file for part in checkpoint.parts.values() for file in part.files}
    for tokenizer in checkpoint.tokenizers.values():
        files |= set(tokenizer.folder.iterdir())
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size
    return total
