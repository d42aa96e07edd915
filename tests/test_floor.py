"""Counting of benchmarks/floor.py and the plots of benchmarks/cost.py, against numbers done by hand."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # they import one another by these names, and dataclasses look them up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    names = ("arithmetic", "rates", "floor", "cost", "start")
    before = {name: sys.modules.get(name) for name in names}
    yield {name: load(name) for name in names}
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module


def quantized(value: Any) -> Any:
    low, high = ops.constant(np.float32(-1)), ops.constant(np.float32(1))
    return ops.fake_quantize(value, low, high, low, high, 256)


def stored(shape: tuple[int, ...], dtype: type) -> Any:
    """Weights as they are kept: numbers of that type, and a scale for each of the first axis."""
    scales = np.ones((shape[0], *(1,) * (len(shape) - 1)), np.float32)
    return ops.multiply(ops.convert(ops.constant(np.ones(shape, dtype)), "f32"), ops.constant(scales))


def work(benchmarks: dict[str, ModuleType], output: Any, *inputs: Any) -> list[Any]:
    found: list[Any] = benchmarks["arithmetic"].work_of(openvino.Model([output], list(inputs)), 2)
    return found


def test_convolution(benchmarks: dict[str, ModuleType]) -> None:
    x = ops.parameter([2, 3, 8, 8], np.float32)
    y = ops.convolution(quantized(x), stored((5, 3, 3, 3), np.int8), [2, 2], [1, 1], [1, 1], [1, 1])
    (found,) = work(benchmarks, y, x)
    assert found.kind == "convolution"
    assert (found.int8_macs, found.float_macs) == (2 * 5 * 4 * 4 * 27, 0)
    assert found.weights == 5 * 27 + 5 * 4
    assert found.activations == 2 * 3 * 64 * 1 + 2 * 5 * 16 * 2


def test_grouped_convolution_counts_its_own_channels(benchmarks: dict[str, ModuleType]) -> None:
    x = ops.parameter([1, 4, 6, 6], np.float32)
    weights = ops.constant(np.ones((2, 3, 2, 1, 1), np.float32))
    y = ops.group_convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    (found,) = work(benchmarks, y, x)
    assert found.float_macs == 36 * 6 * 2


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_product_of_unquantized_values_is_floating_point(
    benchmarks: dict[str, ModuleType], transposed: bool
) -> None:
    x = ops.parameter([2, 6, 10] if transposed else [2, 10, 6], np.float32)
    (found,) = work(benchmarks, ops.matmul(x, stored((7, 6), np.int8), transposed, True), x)
    assert found.kind == "matrix product"
    assert (found.int8_macs, found.float_macs) == (0, 2 * 10 * 7 * 6)
    assert found.weights == 7 * 6 + 7 * 4


def test_quantized_values_may_be_moved_before_they_are_used(benchmarks: dict[str, ModuleType]) -> None:
    x = ops.parameter([2, 10, 6], np.float32)
    flat = ops.reshape(quantized(x), ops.constant(np.array([20, 6])), False)
    (found,) = work(benchmarks, ops.matmul(flat, stored((7, 6), np.int8), False, True), x)
    assert (found.int8_macs, found.float_macs) == (20 * 7 * 6, 0)


def test_weights_that_are_not_quantized_leave_the_product_in_floating_point(
    benchmarks: dict[str, ModuleType],
) -> None:
    x = ops.parameter([10, 6], np.float32)
    (found,) = work(benchmarks, ops.matmul(quantized(x), stored((7, 6), np.float16), False, True), x)
    assert (found.int8_macs, found.float_macs) == (0, 10 * 7 * 6)
    assert found.weights == 7 * 6 * 2 + 7 * 4


def test_attention(benchmarks: dict[str, ModuleType]) -> None:
    query, keys = (ops.parameter([2, 4, length, 8], np.float32) for length in (16, 6))
    values = ops.parameter([2, 4, 6, 10], np.float32)
    given = (query, keys, values)
    (found,) = work(benchmarks, ops.scaled_dot_product_attention(*given), *given)
    pairs = 2 * 4 * 16 * 6
    assert (found.kind, found.int8_macs, found.float_macs) == ("attention", 0, pairs * (8 + 10))
    assert found.activations == 2 * (2 * 4 * (16 * 8 + 6 * 8 + 6 * 10) + 2 * 4 * 16 * 10)

    both = ops.scaled_dot_product_attention(quantized(query), quantized(keys), values)
    (found,) = work(benchmarks, both, *given)
    assert (found.int8_macs, found.float_macs) == (pairs * 8, pairs * 10)


def test_product_of_two_activations_is_attention(benchmarks: dict[str, ModuleType]) -> None:
    query, keys = (ops.parameter([2, length, 8], np.float32) for length in (16, 6))
    (found,) = work(benchmarks, ops.matmul(query, keys, False, True), query, keys)
    assert (found.kind, found.float_macs, found.weights) == ("attention", 2 * 16 * 6 * 8, 0)


def test_what_only_a_quantizer_reads_is_written_as_bytes(benchmarks: dict[str, ModuleType]) -> None:
    x = ops.parameter([10, 6], np.float32)
    first = ops.matmul(quantized(x), stored((7, 6), np.int8), False, True)
    both = work(benchmarks, ops.matmul(quantized(first), stored((9, 7), np.int8), False, True), x)
    assert [each.activations for each in both] == [10 * 6 + 10 * 7, 10 * 7 + 10 * 9 * 2]


def test_floor_is_the_slower_of_arithmetic_and_weights(benchmarks: dict[str, ModuleType]) -> None:
    work_type = benchmarks["arithmetic"].Work
    rates = benchmarks["rates"].Rates(
        {"int8": {"products": 100.0, "convolutions": 200.0}, "f32": {"products": 50.0}}, 10.0
    )
    slow = work_type("a", "matrix product", 400, 50, 10, 30)
    heavy = work_type("b", "matrix product", 200, 0, 70, 30)
    found = benchmarks["floor"].demand_of([slow, heavy], "f32", rates)
    assert found.floor == pytest.approx((400 / 200 + 50 / 50) + 70 / 10)
    assert found.moved == pytest.approx(60 / 10)
    assert (found.int8_macs, found.float_macs, found.weights_bytes) == (600, 50, 80)


@pytest.mark.parametrize(
    ("node", "kernel", "kind"),
    [
        ("Convolution", "brgconv_avx512_1x1_I8", "convolution, int8"),
        ("FullyConnectedCompressed", "brgemm_avx512_bf16", "matrix product"),
        ("Reorder", "jit_uni_I8", "reorder"),
        ("Subgraph", "jit_avx512_bf16", "elementwise and rest"),
    ],
)
def test_kinds_of_executed_operations(
    benchmarks: dict[str, ModuleType], node: str, kernel: str, kind: str
) -> None:
    assert benchmarks["floor"].kind_of(node, kernel) == kind


def test_rates_are_counted_as_quantized_where_they_are_to_be(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = benchmarks["rates"]
    for name, value in {"ROWS": 4, "WIDTH": 8, "CHANNELS": 2, "SIDE": 4}.items():
        monkeypatch.setattr(rates, name, value)
    for make, macs in ((rates.products, 4 * 4 * 8 * 8), (rates.convolutions, 4 * 16 * 2 * 2 * 9)):
        for name in ("int8", "f32"):
            found = benchmarks["arithmetic"].work_of(make(name), 4)
            assert sum(each.int8_macs for each in found) == (macs if name == "int8" else 0)
            assert rates.amount(make(name)) == macs


def row(axis: str, value: int, total: float) -> dict[str, Any]:
    seconds = {"load": 0.1, "encode": 0.0, "denoise": 1.0, "decode": 0.2, "total": total}
    first = {"total": 9.0, "peak_bytes": 4e8}
    return {"axis": axis, "value": value, "seconds": seconds, "peak_bytes": 3e8, "first": first}


def test_cost_measured_in_parts_comes_together(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    cost = benchmarks["cost"]
    refused = {"axis": "size", "value": 1536, "error": "too | large"}
    kept = [row("threads", 1, 3.0), row("steps", 4, 5.0)]
    rows = cost.together(kept, [row("steps", 2, 2.0), row("steps", 4, 4.0), refused])
    assert [(each["axis"], each["value"]) for each in rows] == [
        ("steps", 2),
        ("steps", 4),
        ("size", 1536),
        ("threads", 1),
    ]
    assert rows[1]["seconds"]["total"] == 4.0

    cost.write(tmp_path, {"model": "models/mini"}, rows)
    assert json.loads((tmp_path / "cost.json").read_text())["rows"] == rows
    lines = (tmp_path / "cost.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert {path.name for path in tmp_path.glob("*.svg")} == {"cost-steps.svg", "cost-threads.svg"}
    circles = ElementTree.parse(tmp_path / "cost-steps.svg").findall(".//{*}circle")
    assert len(circles) == 2 * 2


def test_first_step_is_found_in_what_the_command_says(benchmarks: dict[str, ModuleType]) -> None:
    until = benchmarks["start"].until_first_step
    lines = iter(["warning: slow\n", "step 1/20\n", "step 2/20\n"])
    assert until(lines) is None
    assert next(lines) == "step 2/20\n"
    assert until(iter(["Error: no such model\n"])) == "Error: no such model"
