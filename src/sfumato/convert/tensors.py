"""Weights where they lie: safetensors files, checked, memory-mapped, and read one tensor at a time."""

import json
import mmap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError

if TYPE_CHECKING:
    import torch

TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}
SIXTEEN_BITS = ("F16", "BF16", "F8_E4M3", "F8_E5M2")
Change = Callable[["torch.Tensor"], "torch.Tensor"]


class Store:
    """A safetensors file, mapped into memory: pages come from the disk when they are read."""

    def __init__(self, path: Path) -> None:
        """Read and check the header; raises CheckpointError where it is damaged or cut short."""
        self.path = path
        try:
            with safe_open(path, "np") as opened:  # refuses wrong lengths, overlaps and large headers
                self.metadata: dict[str, str] = opened.metadata() or {}
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cut short or damaged ({error}); download it again") from error
        header.pop("__metadata__", None)
        self._start = 8 + length
        self._entries: dict[str, dict[str, Any]] = header

    def tensors(self) -> dict[str, "Stored"]:
        """Every tensor of the file, by name."""
        return {
            name: Stored(self, name, tuple(entry["shape"]), entry["dtype"])
            for name, entry in self._entries.items()
        }

    def read(self, name: str) -> "torch.Tensor":
        """One tensor as a view of the mapped file, not to be written to; 8-bit floats become float16."""
        import torch

        entry = self._entries[name]
        kind = TYPES.get(entry["dtype"])
        if kind is None:
            raise CheckpointError(
                f"{self.path}: {name} is stored as {entry['dtype']}; supported are {', '.join(TYPES)}"
            )
        dtype: torch.dtype = getattr(torch, kind)
        start, end = entry["data_offsets"]
        if start == end:
            return torch.empty(entry["shape"], dtype=dtype)
        with warnings.catch_warnings():  # torch warns that the mapped file cannot be written to
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(
                self._data, dtype=dtype, count=(end - start) // dtype.itemsize, offset=self._start + start
            )
        tensor = flat.reshape(entry["shape"])
        return tensor.to(torch.float16) if dtype.itemsize == 1 and dtype.is_floating_point else tensor


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint, not read yet. shape and dtype ("F16", ...) are those of `read`'s result.

    change: what makes the wanted tensor of the stored one, such as a slice or a transposition.
    """

    store: Store
    key: str
    shape: tuple[int, ...]
    dtype: str
    change: Change | None = None

    def read(self) -> "torch.Tensor":
        """The tensor: a view of the mapped file where nothing has to be computed."""
        tensor = self.store.read(self.key)
        return tensor if self.change is None else self.change(tensor)

    def changed(self, shape: tuple[int, ...], change: Change) -> "Stored":
        """This tensor after a further change, which gives it `shape`."""
        first = self.change
        both = change if first is None else lambda tensor: change(first(tensor))
        return replace(self, shape=shape, change=both)
