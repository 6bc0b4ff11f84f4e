"""Every law that says something of a model notices a fault in the source of each: SDXL's, DeepFloyd IF's,
MMDiT's."""

import pytest

from support import laws, laws_of_calls
from support.copies import native_slots_are_foreign_hooks
from support.faults import FAULTS, require, require_noticed
from support.planting import plant
from support.strategies import Case
from textpatch.plan import Swap
from textpatch.reference_models import deepfloyd_if, mmdit, sdxl

CROSS, ADDED, JOINT = sdxl.CrossAttention, deepfloyd_if.AddedAttention, mmdit.JointAttention
TABLES, TURNED = "slots_k=slots[0], slots_v=slots[1]", "slots_k=slots[1], slots_v=slots[0]"
TO_HEADS, INTERLEAVED = "b n (h d) -> b h n d", "b n (d h) -> b h n d"


def where_read(x: str) -> str:
    """x, of another row where there are slots."""
    return f"({x} if slots[0] is None else {x}.roll(1, 0))"


def site_before(call: str, tokens: str = "") -> tuple[str, str]:
    return f"{call}({tokens}slots,", f"{call}({tokens}slots and [*slots[1:], slots[0]],"


BANK_OF_ANOTHER_ROW = {
    "sdxl": (CROSS, "forward", "(None, k)", f"(None, {where_read('k')})"),
    "if-i": (ADDED, "forward", "(k_image, k_text)", f"(k_image, {where_read('k_text')})"),
    "mmdit": (JOINT, "forward", "(k_image, k_text)", f"(k_image, {where_read('k_text')})"),
}
KEYS_AS_VALUES = {
    "sdxl": (CROSS, "forward", "(None, k), (None, v)", "(None, v), (None, k)"),
    "if-i": (
        ADDED,
        "forward",
        "(k_image, k_text), (v_image, v_text)",
        "(k_image, v_text), (v_image, k_text)",
    ),
    "mmdit": (
        JOINT,
        "forward",
        "(k_image, k_text), (v_image, v_text)",
        "(k_image, v_text), (v_image, k_text)",
    ),
}
KEYS_AS_VALUES_IN_THE_BANK = {
    "sdxl": (
        CROSS,
        "text_kv",
        "self.to_k(tokens)), self.split(self.to_v",
        "self.to_v(tokens)), self.split(self.to_k",
    ),
    "if-i": (
        ADDED,
        "text_kv",
        "self.add_k_proj(tokens)), self.split(self.add_v_proj",
        "self.add_v_proj(tokens)), self.split(self.add_k_proj",
    ),
}
KEYS_WITHOUT_GRADIENT = {
    "sdxl": (CROSS, "text_kv", "self.to_k(tokens)", "self.to_k(tokens.detach())"),
    "if-i": (ADDED, "text_kv", "self.add_k_proj(tokens)", "self.add_k_proj(tokens.detach())"),
    "mmdit": (JOINT, "forward", "self.add_k_proj(text)", "self.add_k_proj(text.detach())"),
}
TABLES_OF_KEYS_FOR_VALUES = {
    "sdxl": (CROSS, "forward", TABLES, TURNED),
    "if-i": (ADDED, "forward", TABLES, TURNED),
    "mmdit": (JOINT, "forward", TABLES, TURNED),
}
HEADS_INTERLEAVED = {
    "sdxl": (sdxl.Attention, "split", TO_HEADS, INTERLEAVED),
    "if-i": (ADDED, "split", TO_HEADS, INTERLEAVED),
    "mmdit": (JOINT, "split", TO_HEADS, INTERLEAVED),
}
IMAGE_OF_ANOTHER_ROW = {
    "sdxl": (CROSS, "forward", "self.to_q(x)", f"self.to_q({where_read('x')})"),
    "if-i": (ADDED, "forward", "self.image_kv(pixels)", f"self.image_kv({where_read('pixels')})"),
    "mmdit": (JOINT, "forward", "self.to_k(image)", f"self.to_k({where_read('image')})"),
}
OFF_BY_ONE_SITE = {
    "sdxl": (sdxl.StableDiffusion, "forward", *site_before("site_reads", "text.tokens, ")),
    "if-i": (deepfloyd_if.DeepFloydIF, "forward", *site_before("site_reads", "tokens, ")),
    "mmdit": (mmdit.MMDiT, "forward", *site_before("slots_per_site")),
}
TEXT_UNREAD = {
    "sdxl": (CROSS, "forward", "self.out(out)", "self.out(out * 0)"),
    "if-i": (ADDED, "forward", "x + out.mT", "x + 0 * out.mT"),
    "mmdit": (mmdit.Block, "forward", "gate * from_image", "0 * from_image"),
}
ROWS_MIXED = {
    "sdxl": (CROSS, "forward", "self.out(out)", "self.out(out + out.mean(0))"),
    "if-i": (ADDED, "forward", "x + out.mT", "x + (out + out.mean(0)).mT"),
    "mmdit": (
        mmdit.Block,
        "forward",
        "gate * from_image",
        "gate * (from_image + from_image.mean(0))",
    ),
}
POOLED_UNREAD = {
    "sdxl": (sdxl.SDXL, "_embed", "[text.pooled,", "[text.pooled * 0,"),
    "if-i": (deepfloyd_if.DeepFloydIF, "_embed", "self._pooled(text", "0 * self._pooled(text"),
    "mmdit": (mmdit.MMDiT, "forward", "text.pooled)", "text.pooled * 0)"),
}


def law_native_slots_are_foreign_hooks(case: Case):
    """Law 13 as support/copies.py states it, for one swap."""
    name = {"SDXL": "SDXL", "DeepFloydIF": "IF", "MMDiT": "SD3"}[type(case.model).__name__]
    native_slots_are_foreign_hooks(
        pytest.importorskip("diffusers"), name, Swap((0, 2), "a", "b", heads=(1,), tokens=(0, 3)), 0
    )


FAULTS_IN_MODELS = {
    laws_of_calls.law_the_empty_plan_is_the_identity: BANK_OF_ANOTHER_ROW,
    laws.law_all_sites_are_the_target: POOLED_UNREAD,
    laws.law_the_start_step: TEXT_UNREAD,
    laws.law_injection_is_a_swap: KEYS_AS_VALUES_IN_THE_BANK,
    laws.law_unnamed_rows_are_untouched: ROWS_MIXED,
    laws.law_earlier_sites_are_unchanged: OFF_BY_ONE_SITE,
    laws.law_image_keys_and_queries_are_untouched: IMAGE_OF_ANOTHER_ROW,
    laws.law_lock_step_is_capture_then_patch: OFF_BY_ONE_SITE,
    laws_of_calls.law_every_swap_is_a_patch: TABLES_OF_KEYS_FOR_VALUES,
    law_native_slots_are_foreign_hooks: KEYS_AS_VALUES,
    laws.law_all_heads_are_the_site: HEADS_INTERLEAVED,
    laws_of_calls.law_the_order_of_a_sites_bank_is_nothing: BANK_OF_ANOTHER_ROW,
    laws_of_calls.law_restoring_undoes_a_swap: BANK_OF_ANOTHER_ROW,
    laws_of_calls.law_rows_are_equivariant: BANK_OF_ANOTHER_ROW,
    laws_of_calls.law_gradients_pass_through_a_swap: KEYS_WITHOUT_GRADIENT,
}
PLANTED = [(law, architecture) for law, fault in FAULTS_IN_MODELS.items() for architecture in fault]


def in_turn():
    """Each law's fault in every architecture's source; by default in one of them, each in its turn."""
    for number, (law, faults) in enumerate(FAULTS_IN_MODELS.items()):
        turn = list(faults)[number % len(faults)]
        for on in faults:
            marks = [pytest.mark.long] * (on != turn)
            yield pytest.param(law, on, id=f"{law.__name__}-{on}", marks=marks)


@pytest.mark.parametrize("law, architecture", list(in_turn()))
def test_the_law_notices(law, architecture, monkeypatch):
    """law(library), and not law(library with the fault in the model's source)."""
    require(law, architecture)
    plant(monkeypatch, *FAULTS_IN_MODELS[law][architecture])
    require_noticed(law, architecture)


def test_every_law_has_a_fault():
    """{laws} = {laws that some fault breaks}."""
    stated = {
        law
        for module in (laws, laws_of_calls)
        for name, law in vars(module).items()
        if name.startswith("law_")
    }
    broken = {
        law for law, *_ in FAULTS.values() if law.__name__ != "law_recorded"
    } | FAULTS_IN_MODELS.keys()
    assert stated == broken - {law_native_slots_are_foreign_hooks}
