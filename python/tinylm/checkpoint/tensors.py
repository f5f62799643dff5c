"""Named tensors to the pieces of a safetensors file, one tensor in memory at a time.

The library reads these files. It could also write them, but then it holds one or two more copies
of all tensors in memory, or it leaves out the hash, the fsync and the report of a full disk that
`files` needs. The format: the header's length (8 bytes, little-endian), the header (JSON, padded
with spaces to a multiple of 8: {name: {"dtype", "shape", "data_offsets": [start, end]}}), then the
numbers, without holes. Source: https://github.com/huggingface/safetensors#format.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Tensors of any device to the bytes of a file, piece by piece.

    The widest dtype comes first, so that numbers stay aligned to their size. Raises
    `ValueError` for a dtype that the format does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            known = ", ".join(NAMES.values())
            raise ValueError(f"{name} has dtype {tensor.dtype}: a checkpoint holds {known}")
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        # One at a time: a copy of all tensors on the host would need the model's size once more.
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        # As bytes before NumPy, which has no bfloat16. Flat before that: torch cannot view a scalar
        # in a dtype of another size.
        yield flat.view(torch.uint8).numpy().data
