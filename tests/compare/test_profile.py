"""Where a model's time goes, operation by operation."""

import pytest

from sfumato.compare.profile import ProfiledDevice
from sfumato.compare.worker import Worker
from sfumato.runtime.devices import Device


def test_operations_add_up_to_the_networks(artifacts):
    with Worker(str(artifacts("sd3-no-t5")), precision="f32", profiled=True) as worker:
        run = worker.generate("a red apple", steps=3, size=(64, 64))
        profile = worker.profile()
    assert set(profile.components) == set(run.components)
    for name, seconds in profile.components.items():
        assert run.components[name] / 10 < seconds <= run.components[name]
        assert sum(cost.share for cost in profile.groups if cost.component == name) <= 1.001
    assert {cost.node_type for cost in profile.groups} & {"FullyConnected", "MatMul"}
    assert all("f32" in cost.exec_type for cost in profile.groups if cost.node_type == "FullyConnected")
    assert all(cost.name is None for cost in profile.groups)
    assert all(cost.name and cost.runs >= 1 for cost in profile.operations)
    times = [cost.seconds for cost in profile.operations]
    assert times == sorted(times, reverse=True)


def test_each_step_is_counted(artifacts):
    with Worker(str(artifacts("sd3-no-t5")), profiled=True) as worker:
        worker.generate("a red apple", steps=40, size=(64, 64))
        profile = worker.profile()
    found = {(cost.component == "transformer", cost.runs) for cost in profile.operations}
    assert (True, 40) in found
    assert found <= {(True, 40), (False, 1), (False, 2)}, "both prompts, or a picture"


@pytest.mark.parametrize("precision", [None, "f32"])
def test_a_profiled_device_differs_in_counting_alone(precision):
    counted = ProfiledDevice("CPU", precision, threads=2)
    assert counted.options == Device("CPU", precision, threads=2).options | {"PERF_COUNT": True}
