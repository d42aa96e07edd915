"""Saving OpenVINO models so that the same model gives the same bytes, whatever was converted before it."""

import re
from pathlib import Path
from typing import Any

import openvino as ov

# OpenVINO names what has no name of its own by type and a number that counts up over the whole process.
AUTOMATIC = re.compile(r"[A-Z]\w*?_\d+(\.\d+)?")


def save_ir(model: Any, xml: Path) -> None:
    """Write `xml` and its `.bin`."""
    model.set_friendly_name("model")
    for number, op in enumerate(model.get_ordered_ops()):
        if AUTOMATIC.fullmatch(op.get_friendly_name()):
            op.set_friendly_name(f"{op.get_type_name()}_{number}")
    for number, port in enumerate(model.inputs):
        if any(AUTOMATIC.fullmatch(name) for name in port.get_names()):
            port.get_tensor().set_names({f"Parameter_{number}"})
    xml.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, xml, compress_to_fp16=False)
