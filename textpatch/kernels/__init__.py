"""The Triton backend of `segment_attention`, and where it can run.

The kernels are `forward.forward` and `backward.backward`.  Triton is optional: nothing here imports it
until `refusal` is asked or one of the two modules is imported.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_DIMS = range(1, 257)
CAPABILITY = (8, 0)  # bfloat16 in the tensor cores, and asynchronous copies


@cache
def _missing() -> str:
    """The reason why triton cannot be imported, or ""."""
    try:
        import_module("triton")
    except Exception as error:  # a broken installation fails in any way it likes
        return f"triton cannot be imported ({error}); install it with: pip install triton"
    return ""


@cache
def _device_refusal(device: torch.device, dtype: torch.dtype) -> str:
    """The reason why the kernels cannot run on a device, or ""."""
    if import_module("triton").knobs.runtime.interpret:
        if dtype == torch.bfloat16:  # triton issue 11584: it multiplies the raw bits
            return "triton's interpreter cannot multiply bfloat16"
        return ""
    if device.type != "cuda":
        return f"the kernels run on a GPU, and the queries are on {device}"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        needed = ".".join(map(str, CAPABILITY))
        return f"the kernels need compute capability {needed}, {device} has {found[0]}.{found[1]}"
    return ""


def refusal(q: Tensor) -> str:
    """The reason why the kernels cannot take queries (B, H, M, D) like these.  "" if they can."""
    if q.dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        return f"the kernels take {known}, and the queries are {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return (
            f"the kernels take head dims up to {HEAD_DIMS[-1]}, and the queries have {q.shape[-1]}"
        )
    return _missing() or _device_refusal(q.device, q.dtype)


def available(q: Tensor) -> bool:
    """True if the kernels can take queries like these."""
    return not refusal(q)
