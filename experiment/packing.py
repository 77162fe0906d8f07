"""Tensors with many zeros, stored as a bitmask and the values that are not zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors for a file: each as it is, or as bits, values and shape where that is smaller."""
    packed = {}
    for name, x in tensors.items():
        x = x.detach().cpu().contiguous()
        kept = x != 0
        bits = torch.from_numpy(np.packbits(kept.numpy()))
        if bits.nbytes + int(kept.sum()) * x.element_size() + 8 * x.ndim < x.nbytes:
            packed |= {f"{name}:bits": bits, f"{name}:values": x[kept], f"{name}:shape": torch.tensor(x.shape)}
        else:
            packed[name] = x
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack`.

    Raises:
        ValueError, KeyError: bits, values and shape do not fit together, or one of them is missing.
    """
    tensors = {}
    for name, x in packed.items():
        stem, _, part = name.rpartition(":")
        if part == "bits" and not packed.keys().isdisjoint({f"{stem}:values", f"{stem}:shape"}):
            shape = packed[f"{stem}:shape"].tolist()
            size = math.prod(shape)
            if len(x) != math.ceil(size / 8):
                raise ValueError(f"{stem}: mask and shape do not fit together")
            kept = torch.from_numpy(np.unpackbits(x.numpy(), count=size).astype(bool))
            values = packed[f"{stem}:values"]
            if int(kept.sum()) != len(values):
                raise ValueError(f"{stem}: mask and values do not fit together")
            tensors[stem] = torch.zeros(size, dtype=values.dtype).masked_scatter_(kept, values).view(shape)
        elif part not in ("values", "shape") or f"{stem}:bits" not in packed:
            tensors[name] = x
    return tensors
