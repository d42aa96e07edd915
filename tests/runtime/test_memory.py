"""How much memory there is, and what a pipeline keeps in it."""

import logging
import os

import pytest

from sfumato.artifact import load_artifact
from sfumato.errors import InvalidRequest
from sfumato.runtime import memory

GB = 2**30


@pytest.fixture(scope="module")
def artifact(artifacts):
    return load_artifact(artifacts("sdxl"))


@pytest.fixture
def system(tmp_path):
    """Write `proc` and `sys` as a Linux would have them, and read what is available there."""

    def read(**files: str) -> int | None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return memory.available(tmp_path)

    return read


def test_weights_are_those_that_a_pipeline_may_read(artifact):
    used = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
    sizes = [(artifact.path / name / "openvino_model.bin").stat().st_size for name in used]
    assert memory.weights(artifact) == sum(sizes)


def test_auto_is_high_from_twice_the_weights_and_the_activations_on(artifact, caplog):
    width, height = artifact.manifest.latents.default_size
    needed = 2 * memory.weights(artifact) + 4000 * width * height
    assert memory.choose("auto", [artifact], needed) == "high"
    assert memory.choose("auto", [artifact], None) == "high"
    with caplog.at_level(logging.INFO, "sfumato"):
        assert memory.choose("auto", [artifact], needed - 1) == "low"
    assert "memory low: keeping all networks takes about 0.0 GB" in caplog.text


@pytest.mark.parametrize("mode", ["low", "high"])
def test_a_choice_is_a_choice(artifact, mode):
    assert memory.choose(mode, [artifact], 0) == memory.choose(mode, [artifact], 10**15) == mode


@pytest.mark.parametrize("mode", ["lots", "", "Low", None, 3])
def test_unknown_modes_are_named(artifact, mode):
    with pytest.raises(InvalidRequest, match=rf"memory {mode!r}: one of auto, low, high"):
        memory.choose(mode, [artifact], 0)


MACHINE = {"proc/meminfo": "MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\nHugePages: 0\n"}


def test_what_the_machine_has(system):
    assert system(**MACHINE) == 8 * GB


def test_a_control_group_of_version_2_and_those_around_it(system):
    group = {
        "proc/self/cgroup": "0::/user/app\n",
        "sys/fs/cgroup/user/app/memory.max": "max\n",
        "sys/fs/cgroup/user/app/memory.current": "1\n",
        "sys/fs/cgroup/user/memory.max": f"{4 * GB}\n",
        "sys/fs/cgroup/user/memory.current": f"{3 * GB}\n",
        "sys/fs/cgroup/user/memory.stat": f"active_file 5\ninactive_file {GB}\n",
    }
    assert system(**MACHINE, **group) == 2 * GB
    assert system(**{"sys/fs/cgroup/user/app/memory.max": f"{GB}"}) == GB - 1
    assert system(**{"sys/fs/cgroup/user/app/memory.max": "0"}) == 0


def test_a_control_group_of_version_1_in_a_container(system):
    group = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}\n",
    }
    assert system(**MACHINE, **group) == 2 * GB
    assert system(**{"sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)}) == 8 * GB


def test_systems_without_these_files(system, monkeypatch):
    assert system() in (memory._half(), None)
    monkeypatch.setattr("os.sysconf_names", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2})
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.get)
    assert system() == 1000 * 4096 // 2
    monkeypatch.delattr("os.sysconf_names")
    assert system() is None


def test_this_machine_has_some():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available() <= total


def test_auto_leaves_room_for_other_models(artifact):
    width, height = artifact.manifest.latents.default_size
    needed = 2 * 2 * memory.weights(artifact) + 4000 * width * height
    assert memory.choose("auto", [artifact, artifact], needed) == "high"
    assert memory.choose("auto", [artifact, artifact], needed - 1) == "low"
