"""Where a model folder's time goes: operation by operation, as OpenVINO executed them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Any

import openvino
from pydantic import BaseModel, ConfigDict

from ..runtime.devices import Device
from .records import Seconds

MOST_GROUPS = 6
LEAST_SHARE = 0.01
MOST_OPERATIONS = 10


Operations = Sequence[openvino.ProfilingInfo]


class Cost(BaseModel):
    """What operations took, all their runs together, for one picture.

    node_type: the operation ("FullyConnected"). exec_type: the kernel that ran it, with its precision
    ("brgemm_avx512_I8"). name: of the one operation; None for all of that type and kernel. share: of the
    component's time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    component: str
    name: str | None = None
    node_type: str
    exec_type: str
    runs: float
    seconds: Seconds
    share: float


class Profile(BaseModel):
    """components: seconds in each network's operations. groups: for each network the types of operations that
    took longest. operations: the single ones that took longest, of all networks."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    components: dict[str, Seconds]
    groups: tuple[Cost, ...]
    operations: tuple[Cost, ...]


class ProfiledDevice(Device):
    """A device that counts the time of each operation; what it compiles is not kept."""

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"PERF_COUNT": True}


def profile_of(found: Mapping[str, Operations], runs: Mapping[str, float]) -> Profile:
    """What one picture takes. found: the operations of each network, with their times for one run of it.

    runs: how often each network runs for a picture.
    """
    costs = [cost for component in found for cost in _costs(component, found[component], runs[component])]
    groups = sorted(_grouped(costs), key=lambda cost: -cost.seconds)
    totals: Counter[str] = Counter()
    for cost in costs:
        totals[cost.component] += round(cost.seconds * 1e9)
    components = [component for component, _ in totals.most_common()]
    return Profile(
        components={component: totals[component] / 1e9 for component in components},
        groups=tuple(
            group
            for component in components
            for group in _notable([each for each in groups if each.component == component])
        ),
        operations=tuple(nlargest(MOST_OPERATIONS, costs, key=lambda cost: cost.seconds)),
    )


def _costs(component: str, found: Operations, runs: float) -> list[Cost]:
    """Of each operation of a network that was executed."""
    executed = [info for info in found if info.status == openvino.ProfilingInfo.Status.EXECUTED]
    total = sum(info.real_time.total_seconds() for info in executed) or 1.0
    return [
        Cost(
            component=component,
            name=info.node_name,
            node_type=info.node_type,
            exec_type=info.exec_type,
            runs=runs,
            seconds=info.real_time.total_seconds() * runs,
            share=info.real_time.total_seconds() / total,
        )
        for info in executed
    ]


def _grouped(costs: Sequence[Cost]) -> list[Cost]:
    """Sums over operations of one component, type and kernel."""
    groups: dict[tuple[str, str, str], list[Cost]] = {}
    for cost in costs:
        groups.setdefault((cost.component, cost.node_type, cost.exec_type), []).append(cost)
    return [
        group[0].model_copy(
            update={
                "name": None,
                "runs": sum(cost.runs for cost in group),
                "seconds": sum(cost.seconds for cost in group),
                "share": sum(cost.share for cost in group),
            }
        )
        for group in groups.values()
    ]


def _notable(groups: Sequence[Cost]) -> list[Cost]:
    return [group for group in groups if group.share >= LEAST_SHARE][:MOST_GROUPS]
