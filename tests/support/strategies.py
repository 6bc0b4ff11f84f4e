"""Random cases for the laws, whose shapes, sites, rows, steps and plans hypothesis draws.

Seeds draw the numbers.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from textpatch.guidance import with_guidance
from textpatch.plan import Plan, Row, Swap
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.flux import Flux, FluxConfig
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import DDIM, DDPM, Euler, FlowMatchEuler
from textpatch.reference_models.sdxl import SDXL, SDConfig, SDXLConfig, StableDiffusion
from textpatch.weights.building import NoFirstValues

CHANNELS = 2
TEXT_WIDTH = 6
POOLED = 5
STATIC = "sdxl", "if-i", "if-ii"  # text keys and values are a function of the text alone
ARCHITECTURES = *STATIC, "mmdit"
# of which the laws see one case by default, because they share what the laws are about with those above
STATIC_KIN = ("sd",)
KIN = *STATIC_KIN, "flux"


@dataclass(frozen=True)
class Case:
    """A small random model and one intervention on it, over which every law of a run is stated.

    `rows[0]` reads `rows[1]` at `sites` from step `start` on.  `plan` is any plan over the same
    run.
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
    def heads(self) -> int:
        """Least number of heads of any site."""
        return min(site.heads for site in self.model.sites)

    @property
    def swap(self) -> Swap:
        late = range(self.start, self.steps)
        return Swap(
            self.sites, self.rows[0].name, self.rows[1].name, steps=late, branch=self.branch
        )

    def acts_in(self, row: Row) -> bool:
        """True if the swap acts in the guidance branch of a row."""
        return self.branch == "both" or row.branch == "cond"

    def branches(self, rows) -> list[Row]:
        """The batch rows of a run over `rows`."""
        return list(rows) if self.guidance == 1 else with_guidance(rows)

    def call(self, slots=None, prompts=None) -> Tensor:
        """Output of the denoiser on all rows in the middle of the schedule, or with other prompts' tokens."""
        x, t, text = self.inputs
        if prompts is not None:
            text = replace(text, tokens=self.pipeline.encode(prompts).tokens)
        with torch.no_grad():
            return self.model(x, t, text, slots=slots)

    def slots(self, *swaps: Swap):
        """Slots of one call on all rows."""
        return Plan(swaps).slots(0, self.rows, self.model.sites, tokens=self.tokens)

    @property
    def inputs(self) -> tuple:
        x = self.pipeline.noise([row.seed for row in self.rows])
        return x, torch.tensor(500.0), self.pipeline.encode([row.prompt for row in self.rows])


@contextmanager
def no_first_values():
    """Modules made meanwhile hold what lies in memory, which `randomize` overwrites.

    To fill them takes a twentieth (DeepFloyd IF) to a fifth (SDXL) of the time of making a small model.
    """
    with NoFirstValues():
        yield


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Fill every tensor with random numbers, none zero.

    At zero gates or a zero last layer each law holds for nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        matrix = tensor.dim() > 1 and name.endswith("weight")
        scale = tensor[0].numel() ** -0.5 if matrix else 0.2
        # norm weights lie around one
        centre = float(not matrix and name.endswith("weight"))
        tensor.normal_(centre, scale, generator=generator)
    return model


def fake_encoders(tokens: int):
    """Prompt -> random tokens and pooled vector, a function of the prompt alone."""

    def row(prompt: str | None) -> Tensor:
        seed = int.from_bytes(sha256((prompt or "").encode()).digest()[:7], "big")
        return torch.randn(
            tokens * TEXT_WIDTH + POOLED, generator=torch.Generator().manual_seed(seed)
        )

    def encode(prompts) -> TextCondition:
        words, pooled = torch.stack([row(p) for p in prompts]).split(
            [tokens * TEXT_WIDTH, POOLED], dim=1
        )
        return TextCondition(words.reshape(-1, tokens, TEXT_WIDTH), pooled)

    return encode


@no_first_values()
def build_pipeline(blocks=3, heads=2, head_dim=4, qk_norm=None, tokens=4, size=(8, 8), seed=0):
    """A random float64 MMDiT with its fake encoders.

    Its `decoder` gives the latents back, row by row.
    """
    config = MMDiTConfig(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=blocks,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED,
        caption_projection_dim=heads * head_dim,
        pos_embed_max_size=8,
        qk_norm=qk_norm,
    )
    model = randomize(MMDiT(config).double(), seed).eval().requires_grad_(False)
    return Pipeline(
        fake_encoders(tokens), model, FlowMatchEuler(), list, Defaults(*size, 3, 4.5), "random"
    )


class StageII(DeepFloydIF):
    """A stage II that takes the picture it draws, mirrored, for the small one beside it."""

    def forward(self, x, t, text, *, slots=None):
        return super().forward(x, t, text, slots=slots, low=x.flip(-1), level=torch.tensor(250.0))


@no_first_values()
def build_flux(
    blocks=2, singles=2, tokens=4, size=(4, 8), seed=0, guidance_embeds=False
) -> Pipeline:
    """A random float64 FLUX.1 of `blocks` sites in two streams and `singles` in one, with 3 heads."""
    config = FluxConfig(
        in_channels=4 * CHANNELS,
        num_layers=blocks,
        num_single_layers=singles,
        num_attention_heads=3,
        attention_head_dim=8,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 4, 2),
    )
    model = randomize(Flux(config).double(), seed).eval().requires_grad_(False)
    return Pipeline(
        fake_encoders(tokens), model, FlowMatchEuler(), list, Defaults(*size, 3, 4.5), "random"
    )


@no_first_values()
def build_sdxl(heads=(2, 3), everywhere=False, **others) -> Pipeline:
    """A random float64 SDXL of four sites with 3 heads.

    `everywhere` adds three sites with other heads at the larger size.
    """
    down, up = (
        ("DownBlock2D", "UpBlock2D")
        if not everywhere
        else ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    )
    config = SDXLConfig(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(12, 24),
        layers_per_block=1,
        norm_num_groups=3,
        down_block_types=(down, "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", up),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=heads,
        cross_attention_dim=TEXT_WIDTH,
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + POOLED,
    )
    return _build_unet(SDXL(config), Euler(), (8, 8, 0, 0, 8, 8), **others)


@no_first_values()
def build_sd(linear=False, **others) -> Pipeline:
    """A random float64 Stable Diffusion of four sites with 3 heads.

    Its encoder pools nothing, and neither does the denoiser.
    """
    config = SDConfig(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(12, 24),
        layers_per_block=1,
        norm_num_groups=3,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 3),
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=linear,
    )
    return _build_unet(StableDiffusion(config), DDIM(), **others)


@no_first_values()
def build_if(stage: str, head_dim=8, **others) -> Pipeline:
    """A random float64 DeepFloyd IF of four sites.

    Its encoder pools nothing, because the denoiser does.
    """
    config = IFConfig(
        block_out_channels=(16, 24),
        layers_per_block=1,
        attention_head_dim=head_dim,
        cross_attention_dim=32,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        encoder_hid_dim=TEXT_WIDTH,
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        addition_embed_type_num_heads=2,
        norm_num_groups=4,
    )
    if stage == "if-i":
        return _build_unet(DeepFloydIF(config), DDPM(), **others)
    second = replace(
        config,
        in_channels=6,
        class_embed_type="timestep",
        only_cross_attention=True,
        resnet_skip_time_act=True,
        time_embedding_act_fn="gelu",
    )
    return _build_unet(StageII(second), DDPM(sample_max_value=1.0), **others)


def _build_unet(model, schedule, micro=None, tokens=4, size=(4, 8), seed=0) -> Pipeline:
    encode = fake_encoders(tokens)
    encoders = (
        encode
        if isinstance(model, SDXL)
        else (lambda prompts: replace(encode(prompts), pooled=None))
    )
    model = randomize(model.double(), seed).eval().requires_grad_(False)
    return Pipeline(encoders, model, schedule, list, Defaults(*size, 3, 4.5, micro=micro), "random")


def make_rows(seeds) -> tuple[Row, ...]:
    return tuple(
        Row(name, f"prompt {name}", seed) for name, seed in zip("abcd", seeds, strict=False)
    )


def fixed_case(architecture: str = "mmdit", **sizes) -> Case:
    """A case in which every fault shows.

    It has guidance, a late start, a head left out, and a donor's donor.
    """
    plan = Plan(
        [
            Swap((0, 2), "a", "b"),
            Swap(1, ("a", "c"), "b", steps=(1, 2), heads=(1,)),
            Swap(2, "a", "c", tokens=(0, 3), part="k"),
            Swap(0, "b", "d"),
        ]
    )
    build = {
        "mmdit": build_pipeline,
        "sdxl": build_sdxl,
        "sd": build_sd,
        "flux": build_flux,
    }.get(architecture, partial(build_if, architecture))
    return Case(build(**sizes), make_rows((0, 1, 2, 3)), 3, 4.5, (1,), 1, "both", plan)


def subsets(values):
    chosen = st.lists(st.sampled_from(list(values)), min_size=1, unique=True)
    return chosen.map(lambda some: tuple(sorted(some)))


def some(values):
    """A subset that is not empty, or None, which means all."""
    return st.none() | subsets(values)


def swaps(names, sites: int, steps: int, heads: int, tokens: int):
    kinds = st.sampled_from(["kv", "kv", "k", "v"]), st.sampled_from(["both", "both", "cond"])
    where = some(range(steps)), some(range(heads)), some(range(tokens))
    return st.builds(
        Swap, subsets(range(sites)), subsets(names), st.sampled_from(names), *where, *kinds
    )


@st.composite
def pipelines(draw, architecture: str) -> Pipeline:
    """Pipelines of any sizes of an architecture, with 2 to 7 sites and 3 to 5 tokens.

    Each has the least of what the laws are about.
    """
    tokens = draw(st.integers(3, 5))
    seed = draw(st.integers(0, 999))
    if architecture == "mmdit":
        blocks = draw(st.integers(2, 4))
        heads = draw(st.integers(2, 3))
        head_dim = draw(st.sampled_from([4, 8]))
        norm = draw(st.sampled_from([None, "rms_norm"]))
        return build_pipeline(
            blocks, heads, head_dim, norm, tokens, draw(st.sampled_from([(8, 8), (8, 12)])), seed
        )
    size = draw(st.sampled_from([(4, 8), (4, 4)]))
    if architecture == "flux":
        blocks = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        return build_flux(*blocks, tokens=tokens, size=size, seed=seed)
    if architecture == "sd":
        return build_sd(draw(st.booleans()), tokens=tokens, size=size, seed=seed)
    if architecture == "sdxl":
        heads = draw(st.sampled_from([(2, 3), (3, 2), (2, 4)]))
        return build_sdxl(heads, draw(st.booleans()), tokens=tokens, size=size, seed=seed)
    return build_if(
        architecture, draw(st.sampled_from([4, 8])), tokens=tokens, size=size, seed=seed
    )


@st.composite
def cases(draw, architecture: str = "mmdit") -> Case:
    pipeline = draw(pipelines(architecture))
    steps = draw(st.integers(2, 3))
    rows = make_rows(draw(st.lists(st.integers(0, 3), min_size=2, max_size=4)))
    guidance = draw(st.sampled_from([1, 4.5]))
    start = draw(st.integers(0, steps - 1))
    sites = range(len(pipeline.denoiser.sites))
    chosen = draw(subsets(sites))
    branch = draw(st.sampled_from(["both", "cond"]))
    case = Case(pipeline, rows, steps, guidance, chosen, start, branch, Plan())
    any_swap = swaps([row.name for row in rows], len(sites), steps, case.heads, case.tokens)
    return replace(case, plan=Plan(draw(st.lists(any_swap, min_size=1, max_size=3))))


@dataclass(frozen=True)
class Attention:
    """Inputs of one segment_attention in float64, with queries, image keys, a bank and its slots."""

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


def make_attention(
    rows=2, bank=3, heads=2, image=5, tokens=3, bank_tokens=4, per_head=True, backend="sdpa", seed=0
):
    """Rows that read random slots of a bank of another size."""
    generator = torch.Generator().manual_seed(seed)

    def draw(b: int, n: int) -> torch.Tensor:
        return torch.randn(b, heads, n, 4, generator=generator, dtype=torch.float64)

    shape = rows, heads if per_head else 1, tokens
    slots = torch.randint(0, bank * bank_tokens, shape, generator=generator).int()
    k, v = ((draw(rows, image), draw(bank, bank_tokens)) for _ in "kv")
    return Attention((draw(rows, image + 1), draw(rows, tokens)), k, v, slots, backend)


def attentions():
    sizes = {
        name: st.integers(1, 4)
        for name in ("rows", "bank", "heads", "image", "tokens", "bank_tokens")
    }
    return st.builds(
        make_attention,
        **sizes,
        per_head=st.booleans(),
        seed=st.integers(0, 999),
        backend=st.sampled_from(["sdpa", "reference"]),
    )
