"""Recipes: which table a component gets, one text for one recipe, and what is said of mistakes."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InvalidRequest
from sfumato.families import FAMILIES
from sfumato.optimize.fields import GROUP_SIZES, MERGING, METHODS, MODES, PARTS, WEIGHTS
from sfumato.optimize.recipe import (
    SELECTORS,
    Calibration,
    ComponentRecipe,
    Recipe,
    Sampling,
    Search,
    builtin,
    limited,
    load_recipe,
    parse_recipe,
)

SHIPPED = [
    *("balanced", "fast", "hybrid", "int4", "int8", "int8-aggressive", "int8-int4", "int8-weights", "mixed"),
    *("nf4", "w4a8"),
]


def refusal(text: str) -> str:
    """The one line that answers a recipe file with this text."""
    with pytest.raises(InvalidRequest) as error:
        parse_recipe(tomllib.loads(text), "own.toml", "own")
    assert "\n" not in str(error.value)
    return str(error.value)


class TestShipped:
    def test_names(self):
        assert list(builtin()) == SHIPPED

    @pytest.mark.parametrize("name", SHIPPED)
    def test_each_is_named_described_and_changes_every_family(self, name):
        recipe = load_recipe(name)
        assert recipe.name == name
        assert 20 < len(recipe.description) <= 96
        for family in FAMILIES.values():
            for each in family.components:
                assert recipe.of(each.name, each.kind, each.name == family.denoiser).mode != "keep"

    def test_int8_int4_is_the_published_one(self):
        recipe = load_recipe("int8-int4")
        encoder = recipe.of("text_encoder_2", "clip_projection", denoiser=False)
        assert (encoder.mode, encoder.group_size, encoder.ratio, encoder.symmetric) == (
            "int4",
            128,
            0.85,
            True,
        )
        assert recipe.of("transformer", "mmdit", denoiser=True).mode == "int8"

    def test_w4a8_has_4_bits_where_int8_has_8(self):
        int8, w4a8 = (load_recipe(name).of("unet", "unet", denoiser=True) for name in ("int8", "w4a8"))
        assert (w4a8.mode, w4a8.weights, w4a8.group_size) == ("int8", "int4", 64)
        assert w4a8.model_copy(update={"weights": "int8"}) == int8

    def test_int8_aggressive_keeps_nothing(self):
        int8, all_of_it = (
            load_recipe(name).of("unet", "unet", denoiser=True) for name in ("int8", "int8-aggressive")
        )
        assert (all_of_it.keep, all_of_it.weights_only) == ((), ())
        assert all_of_it == int8.model_copy(update={"keep": (), "weights_only": ()})

    @pytest.mark.parametrize("name", ["balanced", "fast"])
    def test_balanced_and_fast_are_int8_but_for_how_they_sample(self, name):
        assert load_recipe(name).components == load_recipe("int8").components

    def test_only_balanced_and_fast_say_how_to_sample(self):
        said = {name: recipe.sampling.reuse for name, recipe in builtin().items() if recipe.sampling}
        assert said == {"balanced": "balanced", "fast": "fast"}

    def test_the_most_loss_can_be_chosen(self):
        assert limited(load_recipe("mixed"), 0.1).search.r1 == 0.1
        with pytest.raises(InvalidRequest, match=r"r1 1\.5"):
            limited(load_recipe("mixed"), 1.5)
        with pytest.raises(InvalidRequest, match=r"recipe 'int8' has no \[search\]"):
            limited(load_recipe("int8"), 0.1)

    def test_only_mixed_searches(self):
        assert [name for name, recipe in builtin().items() if recipe.search] == ["mixed"]

    @pytest.mark.parametrize("name", ["int8-weights", "int4", "nf4"])
    def test_weight_only_recipes_need_no_samples(self, name):
        assert not any(each.needs_samples for each in load_recipe(name).components.values())
        assert any(each.needs_samples for each in load_recipe("int8").components.values())


class TestResolution:
    recipe = Recipe(
        name="own",
        components={
            "default": ComponentRecipe(mode="nf4"),
            "denoiser": ComponentRecipe(mode="int8"),
            "text_encoders": ComponentRecipe(mode="int4"),
            "text_encoder_2": ComponentRecipe(mode="keep"),
            "vae_decoder": ComponentRecipe(mode="hybrid"),
        },
    )

    @pytest.mark.parametrize(
        ("name", "kind", "denoiser", "mode"),
        [
            ("unet", "unet", True, "int8"),
            ("transformer", "mmdit", True, "int8"),
            ("text_encoder", "clip", False, "int4"),
            ("text_encoder_3", "t5", False, "int4"),
            ("text_encoder_2", "clip_projection", False, "keep"),
            ("vae_decoder", "vae_decoder", False, "hybrid"),
            ("vae_encoder", "vae_encoder", False, "nf4"),
        ],
    )
    def test_name_before_role_before_default(self, name, kind, denoiser, mode):
        assert self.recipe.of(name, kind, denoiser).mode == mode

    def test_what_no_table_chooses_is_kept(self):
        recipe = Recipe(name="own", components={"vae": ComponentRecipe(mode="int8")})
        assert recipe.of("unet", "unet", denoiser=True) == ComponentRecipe(mode="keep")
        assert recipe.of("vae_encoder", "vae_encoder", denoiser=False).mode == "int8"


def components() -> st.SearchStrategy[ComponentRecipe]:
    share = st.floats(0, 1)
    layers = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1)
    parts = st.lists(st.one_of(st.sampled_from(PARTS), layers.map("layer:{}".format)))
    values = {
        "smooth": st.one_of(st.none(), st.just("auto"), share),
        "bias_correction": st.booleans(),
        "scale_estimation": st.booleans(),
        "group_size": st.sampled_from(GROUP_SIZES),
        "ratio": share,
        "symmetric": st.booleans(),
        "weights": st.sampled_from(WEIGHTS),
        "keep": parts,
        "weights_only": parts,
        "token_merging": st.floats(0, 0.75),
        "merging_method": st.sampled_from(METHODS),
    }
    tables = [
        st.fixed_dictionaries({"mode": st.just(mode)}, optional={key: values[key] for key in keys})
        for mode, keys in MODES.items()
    ]
    return st.one_of(tables).map(_used).map(ComponentRecipe.model_validate)


def _used(table: dict[str, object]) -> dict[str, object]:
    """Without a method for merging nothing."""
    return {key: value for key, value in table.items() if key != "merging_method" or "token_merging" in table}


lines = st.text(st.characters(codec="utf-8"), max_size=40).filter(str.isprintable)
recipes = st.builds(
    Recipe,
    name=lines,
    description=lines,
    components=st.dictionaries(st.sampled_from(SELECTORS), components(), min_size=1),
    calibration=st.builds(
        Calibration,
        samples=st.integers(1, 10_000),
        prompts=st.sampled_from(["auto", "icons", 'my "own".txt', "x\\y.txt", "~/ü.txt"]),
        negative_share=st.floats(0, 1),
        steps=st.none() | st.integers(1, 1000),
        guidance=st.none() | st.floats(0, 1000),
        size=st.none() | st.tuples(st.integers(8, 8192), st.integers(8, 8192)),
    ),
    sampling=st.none()
    | st.builds(
        Sampling, reuse=st.sampled_from(["off", "balanced", "fast"]), guidance_every=st.integers(1, 16)
    ),
    search=st.none() | st.builds(Search, psnr=st.floats(0, 100), r1=st.floats(0, 1)),
)


class TestText:
    @given(recipes)
    def test_reading_the_text_gives_the_recipe(self, recipe):
        again = parse_recipe(tomllib.loads(recipe.to_toml()), "own.toml", "another")
        assert again == recipe
        assert again.to_toml() == recipe.to_toml()

    def test_one_recipe_has_one_text_however_it_was_written(self):
        short = '[vae]\nmode = "int4"\n[unet]\nmode = "int8"\nkeep = ["modulation", "first_convolution"]\n'
        long = """
        format = 1
        name = "own"   # a comment
        [unet]
        keep = ["first_convolution", "modulation", "modulation"]
        mode = 'int8'
        [vae]
        ratio = 1
        group_size = 64
        mode = "int4"
        """
        texts = {parse_recipe(tomllib.loads(text), "x", "own").to_toml() for text in (short, long)}
        assert len(texts) == 1
        assert 'keep = ["first_convolution", "modulation"]' in texts.pop()

    def test_sampling_is_written_whole_where_there_is_some(self):
        shown = tomllib.loads(parse_recipe({"vae": {"mode": "int8"}, "sampling": {}}, "x", "own").to_toml())
        assert shown["sampling"] == {"reuse": "off", "guidance_every": 1, "fit": 0}
        assert "sampling" not in tomllib.loads(load_recipe("int8").to_toml())

    def test_every_key_that_means_something_is_written(self):
        text = Recipe(name="own", components={"vae": ComponentRecipe(mode="int4")}).to_toml()
        assert tomllib.loads(text)["vae"].keys() == {"mode", *MODES["int4"]} - set(MERGING)

    @pytest.mark.parametrize("mode", ["keep", "int8", "int4", "hybrid"])
    def test_merging_is_written_where_there_is_some(self, mode):
        merging = ComponentRecipe(mode=mode, token_merging=0.5, merging_method="pool")
        text = Recipe(name="own", components={"denoiser": merging}).to_toml()
        table = tomllib.loads(text)["denoiser"]
        assert (table["token_merging"], table["merging_method"]) == (0.5, "pool")
        assert parse_recipe(tomllib.loads(text), "x", "own").components["denoiser"] == merging
        assert merging.changes and not ComponentRecipe(mode="keep").changes


class TestMistakes:
    """Every one is answered by one line with the place, the value and the remedy."""

    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            (
                '[transfomer]\nmode = "int8"',
                "recipe own.toml: [transfomer]: no such component; did you mean 'transformer'?",
            ),
            ("[calibraton]\nsamples = 3", "[calibraton]: no such component; did you mean 'calibration'?"),
            ("nmae = 'x'", "no key 'nmae'; did you mean 'name'?"),
            ("version = 2", "no key 'version'; there is format, name, description"),
            ('[vae]\nmode = "int9"', "[vae]: mode 'int9': no such mode; did you mean 'int8'?"),
            ("[vae]\nmode = ['int8']", "mode ['int8']: no such mode"),
            ("[vae]\nkeep = []", "[vae]: mode is missing; there is keep, int8,"),
            (
                '[vae]\nmode = "int8"\nbias_corection = true',
                "no key 'bias_corection'; did you mean 'bias_cor",
            ),
            (
                '[vae]\nmode = "int8-weights"\ngroup_size = 64',
                "group_size means nothing with mode 'int8-weights'; it goes with int8, int4, nf4, hybrid",
            ),
            (
                '[unet]\nmode = "int8"\ntoken_merging = 0.9',
                "[unet]: token_merging 0.9: must be a finite number from 0 to 0.75",
            ),
            (
                '[unet]\nmode = "keep"\ntoken_merging = "half"',
                "token_merging 'half': must be a finite number",
            ),
            (
                '[unet]\nmode = "keep"\ntoken_merging = 0.5\nmerging_method = "pol"',
                "merging_method 'pol': no such method; did you mean 'pool'?",
            ),
            (
                '[vae]\nmode = "nf4"\nsymmetric = true',
                "symmetric means nothing with mode 'nf4'; it goes with int8, int4, hybrid",
            ),
            ('[vae]\nmode = "keep"\nkeep = []', "keep means nothing with mode 'keep'"),
            ('[vae]\nmode = "int4"\nratio = 1.5', "ratio 1.5: must be a finite number from 0 to 1"),
            ('[vae]\nmode = "int4"\nratio = nan', "ratio nan: must be a finite number from 0 to 1"),
            (
                '[vae]\nmode = "int4"\ngroup_size = 100',
                "group_size 100: must be a power of two from 16 to 512, or -1",
            ),
            ('[vae]\nmode = "int4"\ngroup_size = 64.0', "group_size 64.0: must be a power of two"),
            ('[vae]\nmode = "int4"\nsymmetric = 1', "symmetric 1: must be true or false"),
            ('[vae]\nmode = "int8"\nsmooth = 2', 'smooth 2: must be a finite number from 0 to 1, or "auto"'),
            (
                '[vae]\nmode = "int8"\nkeep = ["modulatin"]',
                "keep 'modulatin': no such part; did you mean 'modulation'?",
            ),
            ('[vae]\nmode = "int8"\nkeep = ["layer:"]', "keep 'layer:': no such part"),
            ('[vae]\nmode = "int8"\nkeep = [[1]]', "keep [1]: no such part"),
            ('[vae]\nmode = "int8"\nkeep = "modulation"', "keep 'modulation': must be a list of parts"),
            ('vae = "int8"', "vae 'int8': must be a table; write [vae] on a line above its keys"),
            ('[[vae]]\nmode = "int8"', "must be a table"),
            ("calibration = 3", "calibration 3: must be a table"),
            (
                "[calibration]\nsamples = 0",
                "[calibration]: samples 0: must be a whole number from 1 to 10000",
            ),
            ("[calibration]\nsamples = true", "samples True: must be a whole number"),
            (
                "[calibration]\nprompts = 'genral'",
                "prompts 'genral': no such captions; did you mean 'general'?",
            ),
            ("[calibration]\nprompts = 3", "prompts 3: must be one text"),
            ("[calibration]\nnegative_share = -1", "negative_share -1: must be a finite number from 0 to 1"),
            ("[calibration]\nsize = '512'", "size '512': must be \"WIDTHxHEIGHT\" in pixels"),
            ("[calibration]\nsize = '512x4'", "height 4: must be a whole number from 8 to 8192"),
            ("[search]\npsnr = -3", "[search]: psnr -3: must be a finite number from 0 to 100"),
            ("[sampling]\nreuse = 'quick'", "[sampling]: reuse 'quick': There is off, balanced, fast"),
            ("[sampling]\nreuse = true", "[sampling]: reuse True: There is off, balanced, fast"),
            ("[sampling]\nguidance_every = 17", "guidance_every 17: must be a whole number from 1 to 16"),
            ("[sampling]\nguidance_every = 1.5", "guidance_every 1.5: must be a whole number"),
            ("[sampling]\nreusing = 'fast'", "[sampling]: no key 'reusing'; did you mean 'reuse'?"),
            ("[samplin]\nreuse = 'fast'", "[samplin]: no such component; did you mean 'sampling'?"),
            ("format = 2", "format 2: must be 1; a newer Sfumato may know others"),
            ("format = true", "format True: must be 1"),
            ('name = "a\\nb"', "name 'a\\nb': must be one printable line of at most 100 characters"),
            ("description = 3", "description 3: must be one text"),
            ("", "recipe own.toml: has no component; write [denoiser]"),
        ],
    )
    def test_answer(self, text, answer):
        whole = text if "mode" in text or not text else f"{text}\n[denoiser]\nmode = 'int8'"
        assert answer in refusal(whole)

    def test_long_values_are_shown_in_part(self):
        answer = refusal(f'[vae]\nmode = "{"x" * 100_000}"')
        assert len(answer) < 500
        assert answer.endswith("hybrid")

    def test_numbers_that_python_does_not_print(self):
        assert "far too large" in refusal(f'[vae]\nmode = "int4"\nratio = 0x{"f" * 9000}')

    def test_the_same_checks_in_python(self):
        with pytest.raises(InvalidRequest, match=r"ratio 1\.5"):
            ComponentRecipe(mode="int4", ratio=1.5)
        with pytest.raises(InvalidRequest, match="did you mean 'denoiser'"):
            Recipe(name="own", components={"denoser": ComponentRecipe(mode="int8")})


class TestDocumentation:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")

    def test_the_example_is_a_recipe(self):
        text = self.page.split("```toml\n")[1].split("```")[0]
        recipe = parse_recipe(tomllib.loads(text), "own.toml", "own")
        assert recipe.of("text_encoder_3", "t5", denoiser=False).ratio == 0.8
        assert recipe.of("vae_decoder", "vae_decoder", denoiser=False).mode == "keep"

    def test_every_name_is_explained(self):
        keys = {key for keys in MODES.values() for key in keys}
        tables = (*Calibration.model_fields, *Sampling.model_fields, *Search.model_fields)
        for name in (*SHIPPED, *MODES, *PARTS, *keys, *tables):
            assert f"`{name}`" in self.page
        for selector in SELECTORS:
            assert f"`[{selector}]`" in self.page

    @pytest.mark.parametrize(
        "text",
        [
            '[transfomer]\nmode = "int8"',
            '[vae]\nmode = "int9"',
            '[vae]\nmode = "int8-weights"\ngroup_size = 64',
            '[vae]\nmode = "int4"\ngroup_size = 100',
            '[vae]\nmode = "int4"\nratio = 1.5',
            '[vae]\nmode = "int8"\nsmooth = 2',
            '[vae]\nmode = "int8"\nkeep = ["modulatin"]',
            '[vae]\nmode = "int8"\n[sampling]\nreuse = "quick"',
            "nmae = 3",
            'format = 2\n[vae]\nmode = "int8"',
        ],
    )
    def test_mistakes_are_answered_as_it_says(self, text):
        assert f"\n{refusal(text)}\n" in self.page

    @pytest.mark.parametrize("data", [b"[vae]\nmode int8", b"\n\n\xff", b"#" * 1_000_001])
    def test_unreadable_files_are_answered_as_it_says(self, data, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("own.toml").write_bytes(data)
        with pytest.raises(InvalidRequest) as error:
            load_recipe("own.toml")
        assert f"\n{error.value}\n" in self.page


class TestFiles:
    def load(self, path: Path, data: bytes) -> Recipe:
        path.write_bytes(data)
        return load_recipe(path)

    def test_own_file_is_named_after_itself(self, tmp_path):
        recipe = self.load(tmp_path / "small one.toml", b'\xef\xbb\xbf[vae]\r\nmode = "nf4"\r\n')
        assert recipe.name == "small one"
        assert recipe.of("vae_decoder", "vae_decoder", denoiser=False).mode == "nf4"

    def test_prompts_are_found_from_the_recipes_folder_and_its_text_does_not_name_that(self, tmp_path):
        text = b'[calibration]\nprompts = "sub/own.txt"\n[vae]\nmode = "int8"\n'
        recipe = self.load(tmp_path / "own.toml", text)
        assert recipe.prompts_file == tmp_path / "sub" / "own.txt"
        assert str(tmp_path) not in recipe.to_toml()
        assert load_recipe("int8").prompts_file is None

    @pytest.mark.parametrize(
        ("data", "answer"),
        [
            (b'[vae]\nmode = "int8"\nkeep = [\xff]', "line 3 is no UTF-8 text"),
            (b'[vae]\nmode = "int8\n', r"is no TOML \(.*line 2"),
            (b"[vae]\nmode = 1\nmode = 2", "is no TOML .*line 3"),
            (b"x = " + b"[" * 100_000, "nested too deeply"),
            (b"x = " + b"1" * 9000, "is no TOML"),
            (b"#" * 1_000_001, "more than 1000000 bytes"),
        ],
    )
    def test_no_recipe(self, tmp_path, data, answer):
        with pytest.raises(InvalidRequest, match=answer) as error:
            self.load(tmp_path / "own.toml", data)
        assert str(error.value).startswith(f"recipe {tmp_path / 'own.toml'}: ")

    def test_no_file(self, tmp_path):
        (tmp_path / "folder.toml").mkdir()
        with pytest.raises(InvalidRequest, match=r"none\.toml: cannot be read"):
            load_recipe(tmp_path / "none.toml")
        with pytest.raises(InvalidRequest, match="is a folder"):
            load_recipe(tmp_path / "folder.toml")
        with pytest.raises(InvalidRequest, match="cannot be read"):
            load_recipe(f"{'x' * 5000}.toml")

    @pytest.mark.parametrize("name", ["int-8", "int9", "", "x\0.toml", "."])
    def test_unknown_name(self, name):
        with pytest.raises(InvalidRequest, match=r"unknown recipe .*int8-int4.* or a \.toml file"):
            load_recipe(name)

    def test_unknown_name_has_a_near_one(self):
        with pytest.raises(InvalidRequest, match="did you mean 'int8-weights'"):
            load_recipe("int8-weigths")

    def test_a_folder_of_the_same_name_does_not_hide_a_recipe(self, tmp_path, monkeypatch):
        (tmp_path / "int8").mkdir()
        monkeypatch.chdir(tmp_path)
        assert load_recipe("int8").name == "int8"
