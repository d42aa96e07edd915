"""How encoded prompts become the denoiser's inputs."""

import numpy as np

from sfumato.families import SD, SD3, SDXL, ConditioningSettings, PromptContext

rng = np.random.default_rng(0)


def clip(width: int, projection: int | None = None, tokens: int = 16) -> dict[str, np.ndarray]:
    states = {name: random(1, tokens, width) for name in ("states", "penultimate")}
    return states if projection is None else states | {"pooled": random(1, projection)}


def random(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def context(absent: bool = False, **settings: object) -> PromptContext:
    return PromptContext((128, 64), ConditioningSettings(**settings), negative=absent, absent=absent)


def test_sd_attends_to_the_last_state():
    encoder = clip(32)
    inputs = SD.conditioning({"text_encoder": encoder}, context())
    assert list(inputs) == ["encoder_hidden_states"]
    np.testing.assert_array_equal(inputs["encoder_hidden_states"], encoder["states"])


def test_sdxl_joins_penultimate_states_and_says_the_size_as_height_width():
    first, second = clip(32), clip(48, projection=40)
    inputs = SDXL.conditioning({"text_encoder": first, "text_encoder_2": second}, context())
    np.testing.assert_array_equal(inputs["encoder_hidden_states"][..., :32], first["penultimate"])
    np.testing.assert_array_equal(inputs["encoder_hidden_states"][..., 32:], second["penultimate"])
    np.testing.assert_array_equal(inputs["text_embeds"], second["pooled"])
    np.testing.assert_array_equal(inputs["time_ids"], [[64, 128, 0, 0, 64, 128]])


def test_sdxl_absent_negative_is_zeros_where_the_checkpoint_says_so():
    encoded = {"text_encoder": clip(32), "text_encoder_2": clip(48, projection=40)}
    zeros = SDXL.conditioning(encoded, context(absent=True, zero_empty_negative=True))
    assert not zeros["encoder_hidden_states"].any()
    assert not zeros["text_embeds"].any()
    assert zeros["time_ids"].any()
    for kept in (context(zero_empty_negative=True), context(absent=True)):
        assert SDXL.conditioning(encoded, kept)["text_embeds"].all()


def test_sdxl_with_the_second_encoder_alone():
    second = clip(48, projection=40)
    inputs = SDXL.conditioning({"text_encoder_2": second}, context())
    np.testing.assert_array_equal(inputs["encoder_hidden_states"], second["penultimate"])


def test_sd3_pads_clip_and_appends_t5():
    first, second, t5 = clip(32, projection=24), clip(48, projection=40), {"states": random(1, 20, 96)}
    encoded = {"text_encoder": first, "text_encoder_2": second, "text_encoder_3": t5}
    inputs = SD3.conditioning(encoded, context(joint_attention_dim=96, t5_tokens=20))
    states = inputs["encoder_hidden_states"]
    assert states.shape == (1, 36, 96)
    np.testing.assert_array_equal(states[:, :16, :32], first["penultimate"])
    np.testing.assert_array_equal(states[:, :16, 32:80], second["penultimate"])
    assert not states[:, :16, 80:].any()
    np.testing.assert_array_equal(states[:, 16:], t5["states"])
    np.testing.assert_array_equal(inputs["pooled_projections"][:, :24], first["pooled"])
    np.testing.assert_array_equal(inputs["pooled_projections"][:, 24:], second["pooled"])


def test_sd3_without_t5_keeps_its_place_with_zeros():
    encoded = {"text_encoder": clip(32, projection=24), "text_encoder_2": clip(48, projection=40)}
    states = SD3.conditioning(encoded, context(joint_attention_dim=96, t5_tokens=20))["encoder_hidden_states"]
    assert states.shape == (1, 36, 96)
    assert states[:, :16].any()
    assert not states[:, 16:].any()


def test_inputs_are_float32():
    encoded = {"text_encoder": clip(32, projection=24), "text_encoder_2": clip(48, projection=40)}
    settings = context(joint_attention_dim=96, t5_tokens=20)
    for family in (SD, SDXL, SD3):
        assert {array.dtype for array in family.conditioning(encoded, settings).values()} == {np.dtype("f4")}


def test_the_refiner_is_told_how_good_the_picture_should_look():
    second = clip(48, projection=40)
    good, bad = (
        SDXL.conditioning(
            {"text_encoder_2": second},
            PromptContext((128, 64), ConditioningSettings(aesthetic_score=True), negative=negative),
        )["time_ids"]
        for negative in (False, True)
    )
    np.testing.assert_array_equal(good, [[64, 128, 0, 0, 6.0]])
    np.testing.assert_array_equal(bad, [[64, 128, 0, 0, 2.5]])
