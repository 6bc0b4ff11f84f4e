"""Fingerprint of a model in memory, for manifests of pipelines that no file of ours loads."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from textpatch.errors import PatchError


def parameters_sha256(model: nn.Module) -> str:
    """Compute the sha256 over names, dtypes, shapes and values of a model's parameters and buffers.

    Raises PatchError for parameters that are not in memory, as sequential offloading leaves them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise PatchError(
                f"the values of {name!r} are not in memory, so the run's weights cannot be told; offload by "
                "whole models, as enable_model_cpu_offload does"
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
