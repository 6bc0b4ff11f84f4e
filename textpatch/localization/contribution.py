"""What the word's tokens give to the picture at each site: read in plain generations, without a single swap.

    c(site) = mean over image tokens i of || W_o [a_1(i); ...; a_H(i)] ||
    a_h(i) = sum over word tokens j of p_h(i, j) v_h(j),   p_h(i, j) = exp(q_h(i) k_h(j) / sqrt(D) - L_h(i))
    L the log sum exp of the query's scores over all keys

"norm" is its mean over steps; "share" the same over the norm of all that attention gives the image there, as norms
alone grow with depth.  (Zarei et al., 2025, arXiv 2505.18832; their score takes the norm token by token)

It says where the word is read, not that swapping it there changes the picture: only an exact check says that.

B batch rows, H heads, M image tokens, N keys, T text tokens, W word tokens, D head width
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from textpatch.attention import log_sum_exp
from textpatch.auditing.replay import Definition
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, as_guidance, branch_rows
from textpatch.pipelines import SupportsSampling, SupportsWordTokens, require_parts
from textpatch.plan import Plan, Row
from textpatch.ports.shipped import find_sites
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
    """{site index: {"norm", "share"}} of one plain generation of a prompt, in its conditional branch; and its picture.

    tokens  which text tokens spell the word; those of `word_tokens` when None
    Raises PatchError for tokens that are not there or none, for sites of a kind whose modules are not known to the
    audit, and as `word_tokens` does.
    """
    require_parts(pipeline, "contribution", SupportsSampling, SupportsWordTokens)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    tokens = list(word_tokens(pipeline, prompt) if tokens is None else tokens)
    total = pipeline.encode([prompt]).tokens.shape[1]
    if not tokens or not 0 <= min(tokens) <= max(tokens) < total:
        raise PatchError(
            f"tokens {tokens} asked for; {prompt!r} has 0..{total - 1}, so give one or more of these"
        )
    row, sites = Row(SOURCE, prompt, seed), find_sites(pipeline.denoiser)
    definition = Definition(Plan(), branch_rows([row], as_guidance(guidance)), sites)
    found: dict[Site, list[tuple[float, float]]] = {site: [] for site in sites}

    def add(record: Record) -> None:
        weight = pipeline.denoiser.get_submodule(f"{record.site.name}.to_out.0").weight
        found[record.site].append(norms(record, definition, weight, tokens))

    with torch.no_grad(), recording_sites(pipeline.denoiser, sites, range(steps), add):
        samples = sample(pipeline, [row], steps=steps, guidance=guidance)
    means = {site.index: np.mean(values, axis=0).tolist() for site, values in found.items()}
    scores = {
        index: {"norm": word, "share": word / whole} for index, (word, whole) in means.items()
    }
    return scores, samples.images[SOURCE]


def norms(
    record: Record, definition: Definition, weight: Tensor, tokens: Sequence[int]
) -> tuple[float, float]:
    """Mean norms over image tokens of what the word's tokens, and what all keys, give them: the last batch row's.

    weight  W_o, (C, H D)
    """
    # in bfloat16 the rounding of s and L alone takes exp(s - L) off by 1 %
    wide = torch.promote_types(weight.dtype, torch.float32)
    q, scale = record.q[0][-1:].to(wide), record.q[0].shape[-1] ** -0.5  # (1, H, M, D)
    keys, values = (
        [x[-1:].to(wide) for x in definition.own(made)] for made in (record.k, record.v)
    )
    lse = log_sum_exp(q, torch.cat(keys, dim=2), None, scale)  # (1, H, M)
    key, value = keys[-1][:, :, tokens], values[-1][:, :, tokens]  # (1, H, W, D), of the text
    p = torch.exp(q @ key.mT * scale - lse[..., None])  # (1, H, M, W)
    given = p @ value, record.out[0][-1:].to(wide)
    word, whole = (F.linear(x.transpose(1, 2).flatten(2), weight.to(wide)) for x in given)
    return float(word.norm(dim=-1).mean()), float(whole.norm(dim=-1).mean())
