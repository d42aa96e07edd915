"""From a model folder to an optimized one: what comes out, that it is the same again, and what is refused."""

import hashlib
import json
import logging
import shutil
import tomllib
from collections import Counter
from functools import cache
from types import SimpleNamespace

import handmade
import numpy as np
import pytest

import sfumato
import tiny
from sfumato import Pipeline
from sfumato.artifact import MANIFEST, find_model, load_artifact, verify
from sfumato.compare import psnr
from sfumato.errors import ArtifactError, InvalidRequest, SfumatoError
from sfumato.graphs import compress
from sfumato.graphs.ir import save_ir
from sfumato.optimize import layers, optimize
from sfumato.optimize.apply import check
from sfumato.optimize.prompts import load_prompts, shipped
from sfumato.optimize.recipe import ComponentRecipe, builtin, load_recipe
from sfumato.optimize.run import prepare, sampling_plan
from sfumato.runtime.devices import core
from sfumato.runtime.reuse import PLANS, Plan

RECIPES = [name for name in builtin() if builtin()[name].search is None]
SAMPLED = {"balanced", "fast", "int8", "int8-aggressive", "int8-int4", "hybrid", "w4a8"}
SAMPLES = 4


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of this module's own, for tiny models whose layers count although they are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(layers, "SMALLEST", 64)
        patch.setattr(compress, "SMALLEST", 64)
        yield


@pytest.fixture(scope="module")
def optimized(tmp_path_factory, artifacts):
    """`optimized(model, recipe)`: a tiny model after a recipe; not to be changed."""
    root = tmp_path_factory.mktemp("optimized")

    @cache
    def make(model, recipe):
        samples = SAMPLES if recipe in SAMPLED else None
        optimize(artifacts(model), root / f"{model}-{recipe}", recipe=recipe, samples=samples)
        return root / f"{model}-{recipe}"

    return make


@pytest.fixture(scope="module")
def floating(artifacts):
    """`floating(model)`: the picture of a tiny model as it was converted."""
    return cache(lambda model: picture(artifacts(model)))


def picture(folder, **options):
    settings = {"seed": 5, "steps": 4, **options}
    pipe = Pipeline.load(folder, precision="f32")
    return np.asarray(pipe("a red apple", **settings).images[0])


def own(tmp_path, text):
    file = tmp_path / "own.toml"
    file.write_text(text, encoding="utf-8")
    return file


def kinds(folder, component, kind="Constant"):
    graph = core().read_model(folder / component / "openvino_model.xml")
    return Counter(op.get_output_element_type(0).get_type_name() for op in handmade.operations(graph, kind))


@pytest.mark.parametrize(
    ("model", "recipe"), [*(("sd3", recipe) for recipe in RECIPES), ("sd", "int8"), ("sd", "hybrid")]
)
def test_every_recipe_gives_a_smaller_model_with_nearly_the_same_pictures(
    model, recipe, artifacts, optimized, floating
):
    before, after = load_artifact(artifacts(model)), load_artifact(optimized(model, recipe))
    verify(after.path)
    assert after.manifest.components == before.manifest.components
    assert set(after.manifest.files) == set(before.manifest.files)
    weights = f"{after.family.denoiser}/openvino_model.bin"
    assert after.manifest.files[weights].bytes < 0.5 * before.manifest.files[weights].bytes
    assert after.manifest.bytes < before.manifest.bytes
    found = picture(after.path)
    assert not np.array_equal(found, floating(model))
    assert psnr(found, floating(model)) > 24


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_manifest_says_what_was_done(recipe, artifacts, optimized, tmp_path):
    manifest = load_artifact(optimized("sd3", recipe)).manifest
    before = load_artifact(artifacts("sd3")).manifest
    applied = manifest.recipe
    assert (manifest.name, manifest.precision, applied.name) == (f"sd3-{recipe}", recipe, recipe)
    wanted = builtin()[recipe].sampling
    said = wanted.model_dump(include={"reuse", "guidance_every"}) if wanted else {}
    sampling = before.sampling.model_copy(update=said)
    assert (manifest.sampling, manifest.latents, manifest.source) == (
        sampling,
        before.latents,
        before.source,
    )
    tomllib.loads(applied.text)
    assert load_recipe(own(tmp_path, applied.text)).document() == builtin()[recipe].document()
    if recipe in SAMPLED:
        assert applied.samples == SAMPLES
        captions = "\n".join(shipped("general")).encode()
        assert applied.captions == hashlib.sha256(captions).hexdigest()
    else:
        assert (applied.samples, applied.captions) == (0, None)
    assert applied.kept == {}


@pytest.mark.parametrize(
    ("recipe", "component", "kind"),
    [
        ("int8", "transformer", "i8"),
        ("int8-weights", "vae_decoder", "f16"),  # linear layers alone, of which it has few
        ("int4", "transformer", "u4"),
        ("nf4", "text_encoder_3", "nf4"),
        ("int8-int4", "text_encoder_3", "i4"),
        ("w4a8", "transformer", "u4"),
        ("w4a8", "text_encoder_3", "i8"),
        ("int8-aggressive", "transformer", "i8"),
    ],
)
def test_weights_are_in_the_form_that_the_recipe_names(recipe, component, kind, optimized):
    found = kinds(optimized("sd3", recipe), component)
    assert found[kind] > 2, found
    assert found["bf16"] == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_activations_are_in_8_bits_where_the_recipe_says_so(recipe, optimized):
    folder = optimized("sd3", recipe)
    rounded = {
        name: sum(kinds(folder, name, "FakeQuantize").values())
        for name in load_artifact(folder).manifest.components
    }
    assert (rounded["transformer"] > 10) == (recipe in SAMPLED - {"hybrid"})
    assert (rounded["vae_decoder"] > 10) == (recipe in SAMPLED)
    assert rounded["text_encoder"] == 0


def test_hybrid_leaves_activations_of_linear_layers(optimized):
    for recipe, linear in (("hybrid", False), ("int8", True)):
        graph = core().read_model(optimized("sd", recipe) / "unet" / "openvino_model.xml")
        read = {
            target.get_node().get_type_name()
            for op in handmade.operations(graph, "FakeQuantize")
            for target in op.output(0).get_target_inputs()
        }
        assert read == ({"Convolution", "MatMul"} if linear else {"Convolution"})


def rounding_before(folder, component):
    """By convolution or linear layer, whether its activations are rounded."""
    graph = core().read_model(folder / component / "openvino_model.xml")
    return {
        op.get_friendly_name(): op.input_value(0).get_node().get_type_name() == "FakeQuantize"
        for kind in ("Convolution", "MatMul")
        for op in handmade.operations(graph, kind)
    }


def test_what_a_recipe_keeps_is_kept(optimized, artifacts):
    rounded = rounding_before(optimized("sd", "int8"), "unet")
    weights = {
        op.get_friendly_name(): op.input_value(1).get_node().get_type_name()
        for op in handmade.operations(
            core().read_model(optimized("sd", "int8") / "unet" / "openvino_model.xml"), "Convolution"
        )
    }
    graph = core().read_model(artifacts("sd") / "unet" / "openvino_model.xml")
    for layer in layers.find_layers(graph):
        if layer.parts & {"first_convolution", "last_projection", "skip_connections"} or layer.vector:
            assert not rounded[layer.name], layer.name
        else:
            assert rounded[layer.name], layer.name
    assert weights["__module.unet.conv_in/aten::_convolution/Convolution"] == "Convert"  # from float16


def test_w4a8_has_4_bits_in_linear_layers_and_8_in_convolutions(optimized):
    folder = optimized("sd", "w4a8")
    rounded = rounding_before(folder, "unet")
    graph = core().read_model(folder / "unet" / "openvino_model.xml")
    stored = {"Convolution": set(), "MatMul": set()}
    for kind, found in stored.items():
        for op in handmade.operations(graph, kind):
            if rounded[op.get_friendly_name()]:
                found.add(weights_in(op))
    assert stored == {"Convolution": {"i8"}, "MatMul": {"u4"}}
    assert kinds(folder, "vae_decoder")["u4"] == 0


def weights_in(op):
    """The type of the constant with an operation's weights, behind what expands it."""
    node = op.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node.get_output_element_type(0).get_type_name()


def test_int8_aggressive_has_no_exceptions(optimized, artifacts):
    rounded = rounding_before(optimized("sd", "int8-aggressive"), "unet")
    graph = core().read_model(artifacts("sd") / "unet" / "openvino_model.xml")
    for layer in layers.find_layers(graph):
        assert rounded[layer.name] != layer.vector, layer.name


def test_a_layer_by_its_name(artifacts, tmp_path):
    text = '[denoiser]\nmode = "int8"\nkeep = ["layer:*mid_block*"]'
    optimize(artifacts("sd"), tmp_path / "out", recipe=own(tmp_path, text), samples=SAMPLES)
    rounded = rounding_before(tmp_path / "out", "unet")
    assert not any(on for name, on in rounded.items() if "mid_block" in name)
    assert sum(rounded.values()) > 10


def test_a_pattern_may_be_for_one_of_the_components_of_a_table(artifacts, tmp_path):
    text = '[vae]\nmode = "int8"\nkeep = ["layer:*up_blocks*"]'
    optimize(artifacts("sd"), tmp_path / "out", recipe=own(tmp_path, text), samples=1)
    assert not any(
        on for name, on in rounding_before(tmp_path / "out", "vae_decoder").items() if "up_b" in name
    )
    assert any(rounding_before(tmp_path / "out", "vae_encoder").values())


def test_a_table_for_all_components(artifacts, tmp_path):
    """Text encoders whose activations are in 8 bits, and scales that fit what flows in."""
    text = '[default]\nmode = "int8"\nsmooth = 0.5\n[transformer]\nmode = "int4"\nscale_estimation = true'
    optimize(artifacts("sd3"), tmp_path / "out", recipe=own(tmp_path, text), samples=SAMPLES)
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        assert kinds(tmp_path / "out", name, "FakeQuantize")["f32"] > 3
    assert kinds(tmp_path / "out", "transformer")["u4"] > 10
    assert picture(tmp_path / "out").std() > 0


def test_scale_estimation_changes_the_scales(artifacts, tmp_path):
    found = []
    for on in ("true", "false"):
        (tmp_path / on).mkdir()
        recipe = own(tmp_path / on, f'[denoiser]\nmode = "int4"\nscale_estimation = {on}')
        samples = SAMPLES if on == "true" else None
        optimize(artifacts("sd3"), tmp_path / on / "out", recipe=recipe, samples=samples)
        found.append(hashes(tmp_path / on / "out")["transformer/openvino_model.bin"])
    assert found[0] != found[1]


def hashes(folder):
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_the_same_bytes_again(artifacts, optimized, tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))  # so that it is calibrated again
    out = tmp_path / "sd-int8"
    optimize(artifacts("sd"), out, recipe="int8", samples=SAMPLES)
    assert hashes(out) == hashes(optimized("sd", "int8"))


def test_more_samples_are_another_model(artifacts, optimized, tmp_path):
    optimize(artifacts("sd"), tmp_path / "sd-int8", recipe="int8", samples=SAMPLES + 1)
    before, after = hashes(optimized("sd", "int8")), hashes(tmp_path / "sd-int8")
    changed = {name for name in before if before[name] != after[name]}
    assert "unet/openvino_model.bin" in changed
    assert "text_encoder/openvino_model.bin" not in changed
    assert load_artifact(tmp_path / "sd-int8").manifest.recipe.samples == SAMPLES + 1


def test_one_calibration_serves_several_recipes(artifacts, optimized, tmp_path, monkeypatch):
    optimized("sd", "int8")

    def nothing(*_):
        raise AssertionError("calibrated again")

    monkeypatch.setattr("sfumato.optimize.calibration._Watched", nothing)
    optimize(artifacts("sd"), tmp_path / "out", recipe="hybrid", samples=SAMPLES)


def test_captions_of_ones_own(artifacts, optimized, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("# mine\na green house\n\nnoto cat\n", encoding="utf-8")
    artifact = optimize(artifacts("sd"), tmp_path / "out", samples=SAMPLES, prompts=captions)
    expected = hashlib.sha256("\n".join(load_prompts(captions)).encode()).hexdigest()
    assert artifact.manifest.recipe.captions == expected
    assert hashes(tmp_path / "out") != hashes(optimized("sd", "int8"))
    text = '[calibration]\nprompts = "captions.txt"\n[denoiser]\nmode = "int8"'
    job = prepare(load_artifact(artifacts("sd")), load_recipe(own(tmp_path, text)))
    assert sampling_plan(job, None, None)[1] == expected  # found from the recipe's folder


def test_models_for_inpainting(artifacts, tmp_path):
    optimize(artifacts("sd-inpaint"), tmp_path / "out", samples=SAMPLES)
    given = {"image": np.full((64, 64, 3), 99, np.uint8), "mask": np.full((64, 64), 255, np.uint8)}
    exact, found = (picture(folder, **given) for folder in (artifacts("sd-inpaint"), tmp_path / "out"))
    assert psnr(found, exact) > 24


@pytest.mark.parametrize("name", tiny.CONSISTENT)
def test_models_that_take_the_guidance(name, optimized, floating):
    after = load_artifact(optimized(name, "int8"))
    assert after.manifest.conditioning.guidance_embedding_dim == tiny.GUIDANCE_WIDTH
    found = picture(after.path)
    assert not np.array_equal(found, floating(name))
    assert psnr(found, floating(name)) > 24


def test_a_negative_prompt_that_a_model_never_reads_is_left_out_and_said(artifacts, tmp_path, caplog):
    sampling = json.loads((artifacts("lcm") / MANIFEST).read_text())["sampling"] | {"steps": 20}
    model = edited(artifacts("lcm"), tmp_path / "model", sampling=sampling)
    text = '[vae]\nmode = "int8-weights"\n[sampling]\nreuse = "fast"\nguidance_every = 2'
    made = optimize(model, tmp_path / "out", recipe=own(tmp_path, text)).manifest.sampling
    assert (made.reuse, made.guidance_every) == ("fast", 1)
    says = "guidance_every 2 left out, as the model takes 20 steps at guidance 8.5, without a negative prompt"
    assert any(says in each.getMessage() for each in caplog.records)


def test_sdxl_with_both_encoders(optimized, floating):
    assert psnr(picture(optimized("sdxl", "int8-int4")), floating("sdxl")) > 24


@pytest.mark.parametrize("recipe", ["int8", "int8-weights"])
def test_progress_is_told_in_order(recipe, artifacts, tmp_path):
    stages, samples = [], []
    optimize(
        artifacts("sd"),
        tmp_path / "out",
        recipe=recipe,
        samples=SAMPLES if recipe in SAMPLED else None,
        on_progress=lambda *each: stages.append(each),
        on_sample=lambda *each: samples.append(each),
    )
    components = ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
    before = ["calibrating"] if recipe in SAMPLED else []
    texts = [text for text, _, _ in stages]
    assert texts == [*before, *(f"optimizing {name}" for name in components), "hashing"]
    assert [done for _, done, _ in stages] == list(range(len(stages)))
    assert {total for *_, total in stages} == {len(stages)}
    assert samples[-1:] == ([(SAMPLES, SAMPLES)] if recipe in SAMPLED else [])


def test_the_model_that_ships(tmp_path):
    with pytest.MonkeyPatch.context() as patch:  # as it is for everybody
        patch.setattr(layers, "SMALLEST", 4096)
        patch.setattr(compress, "SMALLEST", 4096)
        text = builtin()["int8"].to_toml().replace("samples = 200", "samples = 2")
        artifact = optimize("mini", tmp_path / "out", recipe=own(tmp_path, text))
    before = load_artifact(find_model("mini")).manifest
    assert artifact.manifest.bytes < 0.65 * before.bytes
    assert artifact.manifest.recipe.samples == 2
    settings = {"steps": 6, "size": (64, 64)}
    exact = np.asarray(sfumato.Pipeline.load("mini")("noto red apple", seed=5, **settings).images[0])
    found = np.asarray(
        sfumato.Pipeline.load(tmp_path / "out")("noto red apple", seed=5, **settings).images[0]
    )
    assert psnr(found, exact) > 20


def test_genai_makes_the_same_picture(optimized):
    referee = pytest.importorskip("referee")  # absent where openvino_genai is
    latents = np.random.default_rng(7).standard_normal((1, 4, 8, 8)).astype(np.float32)
    options = {"steps": 4, "guidance": 5.0}
    folder = optimized("sd", "int8")
    reference = referee.genai_picture(folder, "a red apple", latents, negative="a house", **options)
    ours = Pipeline.load(folder, precision="f32")
    found = ours("a red apple", negative_prompt="a house", latents=latents, **options).images[0]
    assert psnr(np.asarray(found), reference) > 30


def refused(expected, model, out, error=InvalidRequest, **options):
    """The message; nothing may be left behind."""
    with pytest.raises(error, match=expected) as caught:
        optimize(model, out, **options)
    assert "\n" not in str(caught.value)
    assert not list(out.parent.glob(f".{out.name}*"))
    return str(caught.value)


def edited(folder, copy, **fields):
    """A copy of a model whose manifest says something else."""
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(manifest | fields))
    return copy


def test_what_is_optimized_already(artifacts, optimized, tmp_path):
    message = refused("optimized already", optimized("sd", "int8"), tmp_path / "out")
    assert "recipe 'int8'" in message
    converted = edited(artifacts("sd"), tmp_path / "converted", precision="int8")  # as by --weights int8
    assert "weights int8" in refused("optimized already", converted, tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "text"), [("sd", '[text_encoder_3]\nmode = "nf4"'), ("sd3", '[unet]\nmode = "int8"')]
)
def test_a_recipe_for_other_families(model, text, artifacts, tmp_path):
    message = refused("changes nothing", artifacts(model), tmp_path / "out", recipe=own(tmp_path, text))
    assert "which has text_encoder" in message
    text = '[default]\nmode = "keep"'
    refused("changes nothing", artifacts(model), tmp_path / "out", recipe=own(tmp_path, text))


def test_what_would_be_ignored(artifacts, tmp_path):
    model, out = artifacts("sd"), tmp_path / "out"
    message = refused("takes no samples", model, out, recipe="int4", samples=3, prompts=tmp_path / "x.txt")
    assert message.endswith("leave out prompts and samples")
    recipe = own(tmp_path, '[denoiser]\nmode = "int4"\n[search]')
    refused(r"\[search\] needs a component with mode int8 or hybrid", model, out, recipe=recipe)
    refused("has no \\[search\\]", model, out, recipe="int8", max_drop=0.1)
    refused("must be a finite number from 0 to 1", model, out, recipe="mixed", max_drop=1.5)


@pytest.mark.parametrize("mode", ["keep", "int8-weights"])
def test_a_recipe_can_merge_tokens(mode, artifacts, floating, tmp_path):
    """By itself or beside other changes; it is told in the manifest, and cannot be done twice."""
    recipe = own(tmp_path, f'[denoiser]\nmode = "{mode}"\ntoken_merging = 0.5\nmerging_method = "pool"')
    made = optimize(artifacts("sd"), tmp_path / "out", recipe=recipe)
    verify(made.path)
    assert (made.manifest.token_merging.ratio, made.manifest.token_merging.method) == (0.5, "pool")
    before = hashes(artifacts("sd"))
    changed = {name for name, value in hashes(made.path).items() if before[name] != value}
    assert changed - {MANIFEST, "modular_model_index.json"} <= {
        f"unet/openvino_model.{kind}" for kind in ("xml", "bin")
    }
    assert "unet/openvino_model.xml" in changed
    assert not np.array_equal(picture(made.path), floating("sd"))
    copy = edited(artifacts("sd"), tmp_path / "merged", token_merging={"ratio": 0.5, "method": "match"})
    refused("merges tokens already; leave token_merging out", copy, tmp_path / "again", recipe=recipe)
    assert optimize(copy, tmp_path / "again", recipe="int8-weights").manifest.token_merging.ratio == 0.5


def test_a_recipe_can_say_how_to_sample_and_nothing_else(artifacts, tmp_path):
    text = '[denoiser]\nmode = "keep"\n[sampling]\nreuse = "balanced"\nguidance_every = 3'
    made = optimize(artifacts("sd"), tmp_path / "out", recipe=own(tmp_path, text))
    verify(made.path)
    before = load_artifact(artifacts("sd")).manifest
    assert made.manifest.files == before.files
    assert (made.manifest.sampling.reuse, made.manifest.sampling.guidance_every) == ("balanced", 3)
    assert made.manifest.sampling.scheduler == before.sampling.scheduler


@pytest.mark.parametrize(
    ("fields", "left", "stays"),
    [
        ({"steps": 4}, "reuse fast and guidance_every 2 left out, as the model takes 4 steps", ("off", 1)),
        ({"guidance": 1.0}, "recipe own: guidance_every 2 left out, as the model", ("fast", 1)),
        ({}, None, ("fast", 2)),
    ],
)
def test_what_few_steps_or_no_guidance_make_idle_is_left_out_and_said(
    fields, left, stays, artifacts, tmp_path, caplog
):
    sampling = json.loads((artifacts("sd") / MANIFEST).read_text())["sampling"] | fields
    model = edited(artifacts("sd"), tmp_path / "model", sampling=sampling)
    text = '[vae]\nmode = "int8-weights"\n[sampling]\nreuse = "fast"\nguidance_every = 2'
    made = optimize(model, tmp_path / "out", recipe=own(tmp_path, text)).manifest.sampling
    assert (made.reuse, made.guidance_every) == stays
    warnings = [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]
    assert len(warnings) == (left is not None)
    assert left is None or left in warnings[0]


def test_sampling_that_is_left_out_changes_nothing(artifacts, tmp_path):
    sampling = json.loads((artifacts("sd") / MANIFEST).read_text())["sampling"] | {"steps": 4}
    model = edited(artifacts("sd"), tmp_path / "model", sampling=sampling)
    text = '[denoiser]\nmode = "keep"\n[sampling]\nreuse = "fast"'
    refused("changes nothing", model, tmp_path / "out", recipe=own(tmp_path, text))


def test_a_denoiser_that_cannot_be_cut_is_refused(artifacts, tmp_path, monkeypatch):
    monkeypatch.setitem(PLANS, ("unet", "fast"), Plan(99, 4))
    recipe = own(tmp_path, '[denoiser]\nmode = "keep"\n[sampling]\nreuse = "fast"')
    message = refused("its steps cannot reuse features", artifacts("sd"), tmp_path / "out", recipe=recipe)
    assert "depth 99" in message and message.endswith("leave reuse out of the recipe")


@pytest.mark.parametrize("name", ["text_encoder", "text_encoders", "vae", "default"])
def test_only_denoisers_merge_tokens(name, artifacts, tmp_path):
    recipe = own(tmp_path, f'[{name}]\nmode = "keep"\ntoken_merging = 0.5')
    message = refused("only a denoiser has tokens", artifacts("sd"), tmp_path / "out", recipe=recipe)
    assert message.startswith("[text_encoder] token_merging" if "text" in name else "[")


def test_merging_nothing_changes_nothing(artifacts, tmp_path):
    recipe = own(tmp_path, '[denoiser]\nmode = "keep"\ntoken_merging = 0')
    refused("changes nothing", artifacts("sd"), tmp_path / "out", recipe=recipe)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        (
            "__module.unet.conv_in/aten::_convolution/Convolutoin",
            "did you mean '__module.unet.conv_in/aten::_convolution/Convolution'?",
        ),
        ("zzz*", "its layers are named like '__module.unet."),
    ],
)
def test_a_pattern_for_no_layer(pattern, hint, artifacts, tmp_path):
    recipe = own(tmp_path, f'[denoiser]\nmode = "int8"\nkeep = ["layer:{pattern}"]')
    message = refused("no layer has this name", artifacts("sd"), tmp_path / "out", recipe=recipe)
    assert message.startswith("[unet] 'layer:")
    assert hint in message
    assert message == message.strip()


def test_groups_that_divide_no_row(tmp_path):
    rng = np.random.default_rng(0)
    x = handmade.parameter("x", 1, 4, 72)
    graph = handmade.model([x], {"y": handmade.linear(x, rng.standard_normal((96, 72)).astype(np.float32))})
    save_ir(graph, tmp_path / "openvino_model.xml")
    networks = {"unet": tmp_path / "openvino_model.xml"}
    with pytest.raises(InvalidRequest, match=r"\[unet\] group_size 64: divides no layer's width \(72\)"):
        check(networks, ComponentRecipe(mode="int4"))
    check(networks, ComponentRecipe(mode="int4", group_size=-1))
    check(networks, ComponentRecipe(mode="int8-weights"))


def test_prompts_that_cannot_be_read(artifacts, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_bytes("ein grüner Apfel".encode("latin-1"))
    message = refused("no UTF-8", artifacts("sd"), tmp_path / "out", prompts=captions)
    assert "captions.txt: line 1" in message
    refused("cannot be read", artifacts("sd"), tmp_path / "out", prompts=tmp_path / "none.txt")
    captions.write_text("\n")
    refused("has no prompts", artifacts("sd"), tmp_path / "out", prompts=captions)


@pytest.mark.parametrize("samples", [0, -1, 10_001, 2.5])
def test_numbers_of_samples(samples, artifacts, tmp_path):
    refused(
        "samples .*: must be a whole number from 1 to 10000",
        artifacts("sd"),
        tmp_path / "out",
        samples=samples,
    )


def test_a_size_that_the_model_cannot_draw(artifacts, tmp_path):
    recipe = own(tmp_path, '[calibration]\nsize = "60x64"\n[denoiser]\nmode = "int8"')
    refused("size 60x64", artifacts("sd"), tmp_path / "out", recipe=recipe)


def test_a_folder_that_is_there(artifacts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused("exists already", artifacts("sd"), out)
    assert (out / "mine.txt").read_text() == "mine"
    refused("exists already", artifacts("sd"), artifacts("sd"))


def test_a_full_disk(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.files.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    message = refused("free some space", artifacts("sd"), tmp_path / "out", error=SfumatoError)
    assert "1.0 kB are free" in message


def test_refiners_are_not_calibrated(artifacts, tmp_path):
    refiner = edited(artifacts("sdxl"), tmp_path / "refiner", conditioning={"aesthetic_score": True})
    refused("is a refiner.*int8-weights", refiner, tmp_path / "out")
    optimize(refiner, tmp_path / "out", recipe="int8-weights")


@pytest.mark.parametrize("name", ["unet/openvino_model.xml", "text_encoder/openvino_model.bin"])
@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_a_damaged_model(recipe, name, artifacts, tmp_path):
    copy = shutil.copytree(artifacts("sd"), tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[5000:5050] = b"<" * 50
    (copy / name).write_bytes(content)
    assert name in refused("changed", copy, tmp_path / "out", error=ArtifactError, recipe=recipe)


@pytest.mark.parametrize("stage", ["calibrating", "optimizing unet", "optimizing vae_decoder", "hashing"])
def test_an_interruption_leaves_nothing(stage, artifacts, tmp_path):
    def stop(text, *_):
        if text == stage:
            raise KeyboardInterrupt

    (tmp_path / "deep").mkdir()
    with pytest.raises(KeyboardInterrupt):
        optimize(artifacts("sd"), tmp_path / "deep" / "out", samples=SAMPLES, on_progress=stop)
    assert list((tmp_path / "deep").iterdir()) == []


def test_nothing_is_said_but_what_matters(artifacts, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        optimize(artifacts("sd"), tmp_path / "out", recipe="int8-weights")
    assert caplog.messages == []


def test_the_package_is_called_like_the_function(artifacts, tmp_path):
    assert sfumato.optimize(artifacts("sd"), tmp_path / "out", recipe="int4").manifest.precision == "int4"
