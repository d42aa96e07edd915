"""Devices: those that exist, with options that they take, and the network that each one runs."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import openvino
import pytest

from sfumato import Pipeline
from sfumato.errors import InvalidRequest
from sfumato.runtime import devices
from sfumato.runtime.devices import Device, Devices

COMPONENTS = ("text_encoder", "unet", "vae_decoder")


@pytest.fixture
def machine(monkeypatch):
    """`machine("CPU", "GPU.0")`: what OpenVINO says is there."""

    def has(*names):
        monkeypatch.setattr(devices, "core", lambda: SimpleNamespace(available_devices=list(names)))

    has("CPU", "GPU")
    return has


def parse(given, **options):
    return Devices.parse(given, COMPONENTS, Device(**options))


def test_unknown_device_names_the_available_ones():
    with pytest.raises(InvalidRequest, match=r"device 'TPU': not found here; available are .*CPU"):
        Device("TPU")


@pytest.mark.parametrize("options", [{"precision": "int3"}, {"threads": 0}, {"cores": "all"}])
def test_unusable_options(options):
    with pytest.raises(InvalidRequest):
        Device(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GPU", "device 'GPU': not found here; available are CPU, AUTO; a GPU needs its maker's driver"),
        ("NPU", "device 'NPU': not found here; available are CPU, AUTO; an NPU needs Intel's NPU driver"),
        ("HETERO:GPU,CPU", "device 'HETERO:GPU,CPU': 'GPU' is not found here; available are CPU.*driver"),
        ("AUTO:GPU,CPU", "device 'AUTO:GPU,CPU': 'GPU' is not found here; available are CPU.*driver"),
        ("MULTI:CPU,NPU", "'NPU' is not found here; available are CPU.*driver"),
        ("HETERO:CPU,", "'' is not found here"),
        ("HETERO", "say of which, such as HETERO:GPU,CPU"),
        ("AUTO:-CPU", "leaves none"),
        ("CPU.0", "not found here"),
        ("CPU:GPU", "not found here"),
        ("", "not found here"),
    ],
)
def test_devices_that_are_not_here(machine, name, message):
    machine("CPU")
    with pytest.raises(InvalidRequest, match=message):
        Device(name)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("GPU", ["GPU"]),
        ("GPU.0", ["GPU.0"]),
        ("GPU.1", ["GPU.1"]),
        ("AUTO", ["CPU", "GPU.0", "GPU.1"]),
        ("AUTO:-GPU", ["CPU"]),
        ("AUTO:-GPU.1", ["CPU", "GPU.0"]),
        ("AUTO:GPU,CPU", ["GPU", "CPU"]),
        ("HETERO:GPU.1,CPU", ["GPU.1", "CPU"]),
    ],
)
def test_devices_that_are_here(machine, name, members):
    machine("CPU", "GPU.0", "GPU.1")
    assert list(Device(name).members) == members


def test_the_first_of_several_and_the_only_one(machine):
    assert Device("GPU.0").members == ("GPU.0",)
    with pytest.raises(InvalidRequest, match="not found"):
        Device("GPU.1")


def test_the_cpu_gets_its_options_wherever_it_takes_part():
    device = Device(threads=1, pinning=False, cores="performance", precision="f32")
    model = _line()
    for name in ("CPU", "AUTO", "AUTO:CPU", "HETERO:CPU"):
        there = replace(device, name=name)
        compiled = devices.core().compile_model(model, name, there.options)
        try:
            properties = compiled.get_property("DEVICE_PROPERTIES")["CPU"]
        except RuntimeError:  # the CPU itself
            properties = {key: compiled.get_property(key) for key in (*there.for_the_cpu, "NUM_STREAMS")}
            properties["INFERENCE_PRECISION_HINT"] = compiled.get_property("INFERENCE_PRECISION_HINT")
        assert properties["INFERENCE_NUM_THREADS"] == 1, name
        assert properties["ENABLE_CPU_PINNING"] is False, name
        assert "PCORE_ONLY" in str(properties["SCHEDULING_CORE_TYPE"]), name
        assert properties["INFERENCE_PRECISION_HINT"] == openvino.Type.f32, name
        assert properties["NUM_STREAMS"] == 1, name


def test_one_for_all_and_some_for_themselves(machine):
    chosen = parse(["gpu", "text_encoder=CPU", "vae_decoder=hetero:gpu,cpu"], threads=3, precision="f32")
    assert [chosen.of(name).name for name in COMPONENTS] == ["CPU", "GPU", "HETERO:GPU,CPU"]
    assert {(each.threads, each.precision) for each in map(chosen.of, COMPONENTS)} == {(3, "f32")}
    assert parse("AUTO").of("unet") == Device("AUTO")
    assert parse("unet=GPU", cached=False).of("vae_decoder") == Device("CPU", cached=False)
    assert parse([]).of("unet") == Device()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("vae=CPU", "device 'vae=CPU': the model has no 'vae'; it has text_encoder, unet, vae_decoder"),
        (["CPU", "GPU"], "device 'GPU': all networks on CPU already; give one"),
        (["unet=CPU", "unet=GPU"], "device 'unet=GPU': unet on CPU already; give one"),
        ("unet=NPU", "device 'NPU': not found here; available are CPU, GPU, AUTO"),
        ("unet=", "device '': not found here"),
    ],
)
def test_what_cannot_be_chosen(machine, given, message):
    with pytest.raises(InvalidRequest, match=message):
        parse(given)


def test_settings_of_the_cpu_need_it(machine):
    with pytest.raises(InvalidRequest, match=r"threads, pinning: for the CPU alone, .* no part in GPU"):
        parse("GPU", threads=4, pinning=True)
    assert parse("AUTO", threads=4).default.threads == 4
    assert parse(["GPU", "unet=CPU"], threads=4).default.threads == 4


@pytest.fixture(scope="module")
def pictures():
    """`pictures(device)`: the bytes that `mini` makes there."""

    @cache
    def make(*device: str) -> bytes:
        settings = {"seed": 7, "steps": 2, "size": (64, 64)}
        pipe = Pipeline.load("mini", device=device, precision="f32")
        return pipe("noto red apple", **settings).images[0].tobytes()

    return make


@pytest.mark.parametrize("device", [["AUTO"], ["AUTO:CPU"], ["HETERO:CPU"], ["CPU", "vae_decoder=MULTI:CPU"]])
def test_devices_made_of_the_cpu_give_its_pictures(device, pictures):
    assert pictures(*device) == pictures("CPU")


def _line() -> openvino.Model:
    """y = 2 x, for compiling something."""
    ops = openvino.opset13
    x = ops.parameter([1, 4], np.float32)
    return openvino.Model([ops.multiply(x, np.float32(2))], [x])
