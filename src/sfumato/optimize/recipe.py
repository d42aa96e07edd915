"""Recipes: what to do to each component of a model, as data that a person can write down."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..errors import InvalidRequest
from ..families import FAMILIES, TEXT_KINDS, Kind
from ..files import expanded
from ..graphs.token_merging import LARGEST_RATIO, Method
from ..manifest import MOST_GUIDANCE_EVERY, Reuse
from ..runtime import values
from ..runtime.reuse import check_reuse
from . import fields
from .fields import MODES, PROMPTS
from .toml import read_toml, to_toml

Mode = Literal["keep", "int8", "int8-weights", "int4", "nf4", "hybrid"]
SELECTORS = (
    "default",
    "denoiser",
    "text_encoders",
    "vae",
    *dict.fromkeys(each.name for family in FAMILIES.values() for each in family.components),
)
"""Tables that choose components: by role, then by name; `default` is for the rest."""
MAX_NAME, MAX_DESCRIPTION, MAX_MESSAGE = 100, 500, 400


def _checked(check: Callable[..., Any], name: str, *limits: float, optional: bool = False) -> BeforeValidator:
    return BeforeValidator(lambda value: None if optional and value is None else check(name, value, *limits))


def _known(component: str) -> None:
    if component not in SELECTORS:
        known = (*SELECTORS, *TABLES)
        raise InvalidRequest(f"[{component}]: no such component; {fields.hint(component, known)}")


def _selectors(components: Any) -> Any:
    for name in components if isinstance(components, Mapping) else ():
        _known(name)
    return components


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, given: Any) -> Any:
        for key in given if isinstance(given, Mapping) else ():
            if key not in cls.model_fields:
                raise InvalidRequest(f"no key {key!r}; {fields.hint(key, cls.model_fields)}")
        return given


class ComponentRecipe(_Table):
    """What to do to one component. A key that means nothing with its mode is refused.

    mode: "keep" changes nothing; "int8": weights and activations (W8A8); "int8-weights": weights alone;
        "int4", "nf4": weights alone, in groups that share a scale; "hybrid": convolutions W8A8, weights alone
        of linear layers.
    group_size: weights of a row that share a scale; -1 is the whole row.
    ratio: share of the weights that takes 4 bits, 0..1; the rest takes 8.
    symmetric: 4 bits without a zero point.
    scale_estimation: scales that fit what the layers take in, from the calibration's samples.
    smooth: strength of SmoothQuant (Xiao et al. 2022), 0..1, "auto", or None for none.
    bias_correction: make up for the mean error of every layer's output.
    weights: how "hybrid" and "int8" store the weights of linear layers; "int8" with "int4" here is W4A8.
    keep: what stays in floating point: names of `fields.PARTS`, or "layer:" and a layer's name or pattern.
    weights_only: the same, for what stays in floating point but for its weights, which take 8 bits.
    token_merging: share of the tokens that the denoiser's self-attention does without, by merging_method; see
        `graphs.token_merging`. None merges none.
    """

    mode: Annotated[Mode, BeforeValidator(fields.mode)]
    group_size: Annotated[int, BeforeValidator(fields.group_size)] = 64
    ratio: Annotated[float, _checked(values.number, "ratio", 0, 1)] = 1.0
    symmetric: Annotated[bool, _checked(fields.flag, "symmetric")] = False
    scale_estimation: Annotated[bool, _checked(fields.flag, "scale_estimation")] = False
    smooth: Annotated[float | Literal["auto"] | None, BeforeValidator(fields.smooth)] = None
    bias_correction: Annotated[bool, _checked(fields.flag, "bias_correction")] = False
    weights: Annotated[Literal["int8", "int4", "nf4"], BeforeValidator(fields.weights)] = "int8"
    keep: Annotated[tuple[str, ...], _checked(fields.parts, "keep")] = ()
    weights_only: Annotated[tuple[str, ...], _checked(fields.parts, "weights_only")] = ()
    token_merging: Annotated[
        float | None, _checked(values.number, "token_merging", 0, LARGEST_RATIO, optional=True)
    ] = None
    merging_method: Annotated[Method, BeforeValidator(fields.merging_method)] = "match"

    @model_validator(mode="before")
    @classmethod
    def _keys_fit_the_mode(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if "mode" not in given:
            raise InvalidRequest(f"mode is missing; there is {', '.join(MODES)}")
        mode = fields.mode(given["mode"])
        for key in given:
            if key in cls.model_fields and key not in ("mode", *MODES[mode]):
                others = ", ".join(other for other, keys in MODES.items() if key in keys)
                raise InvalidRequest(f"{key} means nothing with mode {mode!r}; it goes with {others}")
        if "merging_method" in given and "token_merging" not in given:
            raise InvalidRequest("merging_method means nothing without token_merging; give a ratio")
        return given

    @property
    def needs_samples(self) -> bool:
        """Whether it takes samples of what goes into the component."""
        return self.mode in ("int8", "hybrid") or self.scale_estimation

    @property
    def changes(self) -> bool:
        """Whether it does anything to the component."""
        return self.mode != "keep" or bool(self.token_merging)

    def document(self) -> dict[str, Any]:
        """Every key that means something with this mode, but those that are None."""
        merging = () if self.token_merging is not None else fields.MERGING
        keys = ("mode", *(key for key in MODES[self.mode] if key not in merging))
        return _given({key: getattr(self, key) for key in keys})


class Calibration(_Table):
    """Where samples come from: pictures that the model makes from captions.

    samples: runs of the denoiser to learn from. prompts: "general" or "icons", captions that ship;
        "auto", those that suit the model; or a file, found from the recipe's folder.
    negative_share: share of the pictures with a negative prompt, where guidance is on.
    steps, guidance, size (width, height in pixels): None for the model's own.
    """

    samples: Annotated[int, _checked(values.whole, "samples", 1, 10_000)] = 200
    prompts: Annotated[str, BeforeValidator(fields.prompts)] = "auto"
    negative_share: Annotated[float, _checked(values.number, "negative_share", 0, 1)] = 1.0
    steps: Annotated[int | None, _checked(values.whole, "steps", 1, 1000, optional=True)] = None
    guidance: Annotated[float | None, _checked(values.number, "guidance", 0, 1000, optional=True)] = None
    size: Annotated[tuple[int, int] | None, BeforeValidator(fields.size)] = None

    def document(self) -> dict[str, Any]:
        """Every key but those that are None; the size as text."""
        size = "{}x{}".format(*self.size) if self.size else None
        return _given({**self.model_dump(), "size": size})


class Search(_Table):
    """What may be lost; layers go back into floating point one by one until no more is.

    psnr: dB, the least mean against the model as it was, at the same prompts and seeds. r1: the most loss of
        R@1, 0..1. prompts: how many pictures are compared.
    """

    psnr: Annotated[float, _checked(values.number, "psnr", 0, 100)] = 30.0
    r1: Annotated[float, _checked(values.number, "r1", 0, 1)] = 0.02
    prompts: Annotated[int, _checked(values.whole, "prompts", 1, 1000)] = 8


class Sampling(_Table):
    """How the model samples unless a request says otherwise: see `manifest.Sampling`.

    fit: pictures that the model makes to find its own key steps of reuse; 0 takes those of `runtime.reuse`.
    """

    reuse: Annotated[Reuse, _checked(check_reuse, "reuse")] = "off"
    guidance_every: Annotated[int, _checked(values.whole, "guidance_every", 1, MOST_GUIDANCE_EVERY)] = 1
    fit: Annotated[int, _checked(values.whole, "fit", 0, 100)] = 0

    @model_validator(mode="after")
    def _fits_reuse(self) -> "Sampling":
        if self.fit and self.reuse == "off":
            raise InvalidRequest("fit means nothing without reuse; give reuse, balanced or fast")
        return self


class Recipe(_Table):
    """A recipe. components: by selector, one of `SELECTORS`; `of` resolves them.

    sampling: None leaves it to the model. search: for recipes that look for what must stay in floating
        point; None otherwise.
    folder: where the file was, for names of files in it; not part of the recipe's text.
    """

    format: Annotated[int, BeforeValidator(fields.check_format)] = fields.FORMAT
    name: Annotated[str, _checked(fields.line, "name", MAX_NAME)]
    description: Annotated[str, _checked(fields.line, "description", MAX_DESCRIPTION)] = ""
    calibration: Calibration = Calibration()
    components: Annotated[dict[str, ComponentRecipe], BeforeValidator(_selectors)]
    sampling: Sampling | None = None
    search: Search | None = None
    folder: Path | None = Field(default=None, exclude=True, repr=False)

    def of(self, name: str, kind: Kind, denoiser: bool) -> ComponentRecipe:
        """What to do to a component: the table of its name, of its role, `default`, or nothing."""
        role = "text_encoders" if kind in TEXT_KINDS else "vae"
        tables = (name, "denoiser" if denoiser else role, "default")
        found = (self.components[table] for table in tables if table in self.components)
        return next(found, ComponentRecipe(mode="keep"))

    @property
    def prompts_file(self) -> Path | None:
        """The file of captions for the calibration; None where captions that ship are asked for."""
        if self.calibration.prompts in PROMPTS:
            return None
        return (self.folder or Path()) / expanded(self.calibration.prompts)

    def document(self) -> dict[str, Any]:
        """All that the recipe says, in one order."""
        components = {each: self.components[each].document() for each in SELECTORS if each in self.components}
        return {
            "format": self.format,
            "name": self.name,
            "description": self.description,
            "calibration": self.calibration.document(),
            **components,
            **{name: each.model_dump() for name in ("sampling", "search") if (each := getattr(self, name))},
        }

    def to_toml(self) -> str:
        """The recipe as text: the same recipe gives the same text, and reading it gives the recipe."""
        return to_toml(self.document())


TABLES: dict[str, type[Calibration | Sampling | Search]] = {
    "calibration": Calibration,
    "sampling": Sampling,
    "search": Search,
}
HEAD = ("format", "name", "description")
Table = TypeVar("Table", bound=_Table)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe that ships, by name, or one in a .toml file. Raises InvalidRequest saying what to correct."""
    name, known = str(name_or_path), _shipped()
    path = known.get(name, expanded(name))
    if path.suffix != ".toml" or "\0" in name:
        raise InvalidRequest(
            f"unknown recipe {name!r}: {values.did_you_mean(name, list(known))}"
            f"Give the name of a recipe ({', '.join(known)}) or a .toml file"
        )
    with _blame(f"recipe {path}"):
        document = read_toml(path)
    return parse_recipe(document, str(path), path.stem, path.parent)


def limited(recipe: Recipe, max_drop: float) -> Recipe:
    """A recipe with [search] whose pictures may lose this much of R@1. Raises InvalidRequest without one."""
    if recipe.search is None:
        raise InvalidRequest(f"max_drop {max_drop}: recipe {recipe.name!r} has no [search]; mixed has one")
    search = Search.model_validate({**recipe.search.model_dump(), "r1": max_drop})
    return recipe.model_copy(update={"search": search})


def builtin() -> dict[str, Recipe]:
    """The recipes that ship, by name."""
    return {name: load_recipe(name) for name in _shipped()}


def parse_recipe(document: Mapping[str, Any], source: str, name: str, folder: Path | None = None) -> Recipe:
    """A recipe from what a TOML file says.

    source: what errors call it. name: where it has none of its own. folder: where names of files begin.
    """
    with _blame(f"recipe {source}"):
        given: dict[str, Any] = {"name": name, "folder": folder}
        components = {}
        for key, value in document.items():
            if key in SELECTORS:
                components[key] = _table(ComponentRecipe, key, value)
            elif key in TABLES:
                given[key] = _table(TABLES[key], key, value)
            elif key in HEAD:
                given[key] = value
            elif isinstance(value, Mapping):
                _known(key)
            else:
                raise InvalidRequest(f"no key {key!r}; {fields.hint(key, HEAD)}")
        if not components:
            raise InvalidRequest('has no component; write [denoiser] and below it, say, mode = "int8"')
        return Recipe(components=components, **given)


def _table(kind: type[Table], name: str, value: Any) -> Table:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} {value!r}: must be a table; write [{name}] on a line above its keys")
    with _blame(f"[{name}]"):
        return kind.model_validate(value)


@contextmanager
def _blame(place: str) -> Iterator[None]:
    """Say where the error is. A long value is shown in part."""
    try:
        yield
    except ValueError as error:  # a number of thousands of digits, which Python does not print
        raise InvalidRequest(f"{place}: a number is far too large; correct it") from error
    except InvalidRequest as error:
        text = str(error)
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
        raise InvalidRequest(f"{place}: {text}") from error


def _shipped() -> dict[str, Path]:
    folder = Path(str(files("sfumato"))) / "optimize" / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def _given(pairs: dict[str, Any]) -> dict[str, Any]:
    """Pairs with a value, tuples as lists: what TOML and JSON can say."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in pairs.items()}
    return {key: value for key, value in plain.items() if value is not None}
