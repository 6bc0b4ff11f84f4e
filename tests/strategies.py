"""Random cases for the laws: hypothesis draws shapes, sites, rows, steps, plans; seeds draw the numbers."""

from dataclasses import dataclass
from hashlib import sha256

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from textpatch.plan import Plan, Row, Swap, with_guidance
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import FlowMatchEuler

CHANNELS, TEXT_WIDTH, POOLED = 2, 6, 5


@dataclass(frozen=True)
class Case:
    """One small random model and one intervention on it: what every law of a run is stated over.

    `rows[0]` reads `rows[1]` at `sites` from step `start` on; `plan` is any plan over the same run.
    """

    pipeline: Pipeline
    rows: tuple[Row, ...]
    steps: int
    guidance: float
    sites: tuple[int, ...]
    start: int
    branch: str
    plan: Plan

    @property
    def model(self) -> nn.Module:
        return self.pipeline.denoiser

    @property
    def tokens(self) -> int:
        return self.pipeline.encode(["a"]).tokens.shape[1]

    @property
    def swap(self) -> Swap:
        late = range(self.start, self.steps)
        return Swap(self.sites, self.rows[0].name, self.rows[1].name, steps=late, branch=self.branch)

    def acts_in(self, row: Row) -> bool:
        """Whether the swap acts in the guidance branch of a row."""
        return self.branch == "both" or row.branch == "cond"

    def branches(self, rows) -> list[Row]:
        """The batch rows of a run over `rows`."""
        return list(rows) if self.guidance == 1 else with_guidance(rows)

    def call(self, slots=None) -> Tensor:
        """The denoiser once, in the middle of the schedule, on all rows."""
        with torch.no_grad():
            return self.model(*self.inputs, slots=slots)

    @property
    def inputs(self) -> tuple:
        x = self.pipeline.noise([row.seed for row in self.rows])
        return x, torch.tensor(500.0), self.pipeline.encode([row.prompt for row in self.rows])


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Every tensor random and none zero: at zero gates or a zero last layer each law holds for nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        matrix = tensor.dim() > 1 and name.endswith("weight")
        scale = tensor[0].numel() ** -0.5 if matrix else 0.2
        tensor.copy_(noise * scale + (not matrix and name.endswith("weight")))  # norm weights lie around one
    return model


def fake_encoders(tokens: int):
    """Prompt -> random tokens and pooled vector, a function of the prompt alone."""

    def row(prompt: str | None) -> Tensor:
        seed = int.from_bytes(sha256((prompt or "").encode()).digest()[:7], "big")
        return torch.randn(tokens * TEXT_WIDTH + POOLED, generator=torch.Generator().manual_seed(seed))

    def encode(prompts) -> TextCondition:
        words, pooled = torch.stack([row(p) for p in prompts]).split([tokens * TEXT_WIDTH, POOLED], dim=1)
        return TextCondition(words.reshape(-1, tokens, TEXT_WIDTH), pooled)

    return encode


def build_pipeline(blocks=3, heads=2, head_dim=4, qk_norm=None, tokens=4, size=(8, 8), seed=0):
    """A random float64 MMDiT with its fake encoders; its `decoder` gives the latents back, row by row."""
    config = MMDiTConfig(
        in_channels=CHANNELS, out_channels=CHANNELS, num_layers=blocks, num_attention_heads=heads,
        attention_head_dim=head_dim, joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=POOLED,
        caption_projection_dim=heads * head_dim, pos_embed_max_size=8, qk_norm=qk_norm,
    )  # fmt: skip
    model = randomize(MMDiT(config).double(), seed).eval().requires_grad_(False)
    return Pipeline(fake_encoders(tokens), model, FlowMatchEuler(), list, Defaults(*size, 3, 4.5), "random")


def make_rows(seeds) -> tuple[Row, ...]:
    return tuple(Row(name, f"prompt {name}", seed) for name, seed in zip("abcd", seeds))


def fixed_case() -> Case:
    """A case in which every fault shows: guidance, a late start, a head left out, a donor's donor."""
    plan = Plan([Swap((0, 2), "a", "b"), Swap(1, ("a", "c"), "b", steps=(1, 2), heads=(1,)),
                 Swap(2, "a", "c", tokens=(0, 3), part="k"), Swap(0, "b", "d")])  # fmt: skip
    return Case(build_pipeline(), make_rows((0, 1, 2, 3)), 3, 4.5, (1,), 1, "both", plan)


def subsets(values):
    chosen = st.lists(st.sampled_from(list(values)), min_size=1, unique=True)
    return chosen.map(lambda some: tuple(sorted(some)))


def some(values):
    """All (None), or a subset that is not empty."""
    return st.none() | subsets(values)


def swaps(names, sites: int, steps: int, heads: int, tokens: int):
    kinds = st.sampled_from(["kv", "kv", "k", "v"]), st.sampled_from(["both", "both", "cond"])
    where = some(range(steps)), some(range(heads)), some(range(tokens))
    return st.builds(Swap, subsets(range(sites)), subsets(names), st.sampled_from(names), *where, *kinds)


@st.composite
def cases(draw) -> Case:
    blocks, heads, tokens, steps = (draw(st.integers(*ends)) for ends in ((2, 4), (2, 3), (3, 5), (2, 3)))
    rows = make_rows(draw(st.lists(st.integers(0, 3), min_size=2, max_size=4)))
    pipeline = build_pipeline(
        blocks, heads, draw(st.sampled_from([4, 8])), draw(st.sampled_from([None, "rms_norm"])), tokens,
        draw(st.sampled_from([(8, 8), (8, 12)])), draw(st.integers(0, 999)),
    )  # fmt: skip
    any_swap = swaps([row.name for row in rows], blocks, steps, heads, tokens)
    return Case(
        pipeline, rows, steps, draw(st.sampled_from([1, 4.5])), draw(subsets(range(blocks))),
        draw(st.integers(0, steps - 1)), draw(st.sampled_from(["both", "cond"])),
        Plan(draw(st.lists(any_swap, min_size=1, max_size=3))),
    )  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """Inputs of one segment_attention, float64: image and text queries, image keys, a bank and its slots."""

    q: tuple[Tensor, Tensor]
    k: tuple[Tensor, Tensor]
    v: tuple[Tensor, Tensor]
    slots: Tensor
    backend: str

    @property
    def bank_rows(self) -> int:
        return self.k[1].shape[0]

    @property
    def bank_tokens(self) -> int:
        return self.k[1].shape[2]


def make_attention(rows=2, bank=3, heads=2, image=5, tokens=3, bank_tokens=4, per_head=True, backend="sdpa",
                   seed=0):  # fmt: skip
    """Rows that read random slots of a bank of another size."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda b, n: torch.randn(b, heads, n, 4, generator=generator, dtype=torch.float64)  # noqa: E731
    shape = rows, heads if per_head else 1, tokens
    slots = torch.randint(0, bank * bank_tokens, shape, generator=generator).int()
    k, v = ((draw(rows, image), draw(bank, bank_tokens)) for _ in "kv")
    return Attention((draw(rows, image + 1), draw(rows, tokens)), k, v, slots, backend)


def attentions():
    sizes = {name: st.integers(1, 4) for name in ("rows", "bank", "heads", "image", "tokens", "bank_tokens")}
    return st.builds(make_attention, **sizes, per_head=st.booleans(), seed=st.integers(0, 999),
                     backend=st.sampled_from(["sdpa", "reference"]))  # fmt: skip
