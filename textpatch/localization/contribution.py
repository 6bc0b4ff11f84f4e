"""Contribution is what the word's tokens give to the picture at each site.

    c(site) = mean over image tokens i of || W_o [a_1(i); ...; a_H(i)] ||
    a_h(i) = sum over word tokens j of p_h(i, j) v_h(j),   p_h(i, j) = exp(q_h(i) k_h(j) / sqrt(D) - L_h(i))
    L the log sum exp of the query's scores over all keys

It is read in plain generations, without a single swap.  "norm" is its mean over steps.  "share" is "norm"
over the norm of all that attention gives the image at the site, because norms alone grow with depth.
(Zarei et al., 2025, arXiv 2505.18832.  Their score takes the norm token by token.)

Contribution says where the word is read.  Only an exact check says that swapping it there changes the
picture.

B batch rows, H heads, M image tokens, N keys, T text tokens, W word tokens, D head width
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from textpatch.attention import log_sum_exp
from textpatch.auditing.replay import Definition
from textpatch.changes import acting_weight
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, as_guidance, branch_rows
from textpatch.pipelines import SupportsSampling, SupportsWordTokens, require_parts
from textpatch.plan import Plan, Row
from textpatch.ports.shipped import pipeline_sites
from textpatch.prompts.alignment import word_tokens
from textpatch.prompts.pairs import SOURCE
from textpatch.recording import Record, recording_sites
from textpatch.sampling import sample
from textpatch.sites import Site


def contributions(
    pipeline,
    prompt: str,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    tokens: Sequence[int] | None = None,
) -> tuple[dict[int, dict[str, float]], Image.Image]:
    """Contribution of every site in one plain generation of a prompt, and the generated picture.

    tokens  which text tokens spell the word, those of `word_tokens` when None
    Returns {site index: {"norm", "share"}} of the conditional guidance branch, and the picture.  Raises
    PatchError for no tokens, for tokens that are not there, and for sites of a kind whose modules are not
    known to the audit.  Raises as `word_tokens` does.
    """
    require_parts(pipeline, "contribution", SupportsSampling, SupportsWordTokens)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    if tokens is None:
        tokens = word_tokens(pipeline, prompt)
    _require_tokens(pipeline, prompt, tokens)
    row = Row(SOURCE, prompt, seed)
    sites = pipeline_sites(pipeline)
    definition = Definition(Plan(), branch_rows([row], as_guidance(guidance)), sites)
    found: dict[Site, list[tuple[float, float]]] = {site: [] for site in sites}

    def add(record: Record) -> None:
        weight = way_out(pipeline.denoiser, record.site)
        found[record.site].append(norms(record, definition, weight, list(tokens)))

    with torch.no_grad(), recording_sites(pipeline.denoiser, sites, range(steps), add):
        samples = sample(pipeline, [row], steps=steps, guidance=guidance)
    means = {site.index: np.mean(values, axis=0).tolist() for site, values in found.items()}
    # where attention gives the picture nothing at all, the word's share of it is 0
    scores = {
        index: {"norm": word, "share": word / (whole or 1.0)}
        for index, (word, whole) in means.items()
    }
    return scores, samples.images[SOURCE]


def way_out(model: nn.Module, site: Site) -> Tensor:
    """Weight W_o (C, H D) that takes a site's attention to the image.

    A block of one stream has one projection for its attention and its feed-forward, in this order.
    """
    if site.kind != "single":
        return acting_weight(model.get_submodule(f"{site.name}.to_out.0"))
    block, _, _ = site.name.rpartition(".")
    return acting_weight(model.get_submodule(f"{block}.proj_out"))[:, : site.heads * site.head_dim]


def _require_tokens(pipeline, prompt: str, tokens: Sequence[int]) -> None:
    """Raise PatchError unless there are tokens and all lie within the prompt's text."""
    total = pipeline.encode([prompt]).tokens.shape[1]
    if not tokens or not 0 <= min(tokens) <= max(tokens) < total:
        raise PatchError(
            f"tokens {list(tokens)} asked for; {prompt!r} has 0..{total - 1}, so give one or more of these"
        )


def norms(
    record: Record, definition: Definition, weight: Tensor, tokens: Sequence[int]
) -> tuple[float, float]:
    """Mean norms of what the word's tokens give the image tokens, and of what all keys give them.

    record  of one site and step.  The last batch row is the conditional one, and is read
    weight  W_o, (C, H D)
    """
    # in bfloat16 the rounding of s and L alone takes exp(s - L) off by 1 %
    wide = torch.promote_types(weight.dtype, torch.float32)
    q = record.q[0][-1:].to(wide)  # (1, H, M, D), of the image
    scale = q.shape[-1] ** -0.5
    keys = [k[-1:].to(wide) for k in definition.own(record.k)]
    values = [v[-1:].to(wide) for v in definition.own(record.v)]
    lse = log_sum_exp(q, torch.cat(keys, dim=2), None, scale)  # (1, H, M)
    key = keys[-1][:, :, tokens]  # (1, H, W, D), of the text
    value = values[-1][:, :, tokens]  # (1, H, W, D)
    p = torch.exp(q @ key.mT * scale - lse[..., None])  # (1, H, M, W)
    word = _mean_norm(p @ value, weight)
    whole = _mean_norm(record.out[0][-1:], weight)
    return word, whole


def _mean_norm(a: Tensor, weight: Tensor) -> float:
    """Mean over image tokens of || W_o a ||, a (1, H, M, D), computed in float32 at least."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    joined = a.to(wide).transpose(1, 2).flatten(2)  # (1, M, H D)
    return float(F.linear(joined, weight.to(wide)).norm(dim=-1).mean())
