"""Faults of the core, each a change of the library's source that must break a law.

A fault is (law, owner, function, text, text put in its place), and must be noticed on every
architecture. Faults in the models' own lines are in test_faults_in_models.py.  A fault whose text
is gone from the function is an error when it is planted, so that the table follows the code.
"""

from contextvars import copy_context
from functools import cache

import pytest
import torch

from support import laws, laws_of_calls, recorded_runs
from support.laws import patching
from support.strategies import Attention, Case, fixed_case, make_attention
from textpatch import attention, bank, calls, hooks, packing, plan, swaps, taps
from textpatch import cache as caches
from textpatch.hooks import Hook, HookRegistry
from textpatch.plan import Plan, Swap
from textpatch.reference_models.deepfloyd_if import DeepFloydIF
from textpatch.reference_models.pipeline import Pipeline as denoising
from textpatch.reference_models.schedules import DDPM
from textpatch.reference_models.schedules.euler import InSigma


def recorded(family: str, run: str, reproduce=recorded_runs.in_one_batch):
    """A law of one of the authors' recorded runs, in one batch, by cache or by injection."""

    def law_recorded(case: Case):
        reproduce(family, run, torch.float64)

    return law_recorded


COND_ONLY = Swap, "acts", 'self.branch == "both" or row.branch', "row.branch"
LATE_STEP = Swap, "in_step", "step in indices", "step - 1 in indices"
LATE_CALL = calls.Calls, "_begin", "Call(self.count,", "Call(self.count + 1,"
FIRST_STEP = (
    caches,
    "stored_kv",
    "key = site.name, step,",
    "key = site.name, min(k[1] for k in cache),",
)
VALUES_AS_KEYS = caches, "stored_kv", "label, part\n", 'label, "vk"["kv".index(part)]\n'
OTHER_DONOR = plan, "_donor", "return place[", "return 0 * place["
ALL_HEADS = plan, "_write", "torch.tensor(swap.heads)", "torch.arange(heads)"
NO_READER = plan, "_write", "zip(readers, donors, strict=True)", "zip(readers[:-1], donors)"
ALL_READERS = plan, "_write", "table[reader, h[:, None], t]", "table[:, h[:, None], t]"
NEXT_SITE = (
    Plan,
    "_tables",
    "tables.setdefault(site,",
    "tables.setdefault(sites[(site.index - 1) % len(sites)],",
)
POOLED_OF_TARGET = bank.Texts, "of", "self.place[row.pooled_prompt]", "self.place[batch[-1].prompt]"
IMAGE_ROWS = taps, "at_text", "taps[tap.module] +=", 'taps[f"{site.name}.to_{part}"] +='
EARLY_HOOK = (
    hooks,
    "_module",
    "return model.get_submodule(name)",
    "module = model.get_submodule(name)\n        module.register_forward_hook(lambda *_: None)\n"
    "        return module",
)
CLEARED = hooks, "_close", "table.pop(key, None)", "table.clear()"
READ_THROUGH = plan, "_write", "(donor * tokens + t).int()", "table[donor][:, t]"
OWN_ROW = (
    attention,
    "gather_text",
    "read = slots.clamp(min=0)",
    "read = (slots % bank.shape[2] + bank.shape[2] * torch.arange(B)[:, None, None]).clamp(min=0)",
)

BY_CACHE = recorded_runs.by_capture
FAULTS = {
    "observer's return value used": (
        laws.law_observing_changes_nothing,
        HookRegistry,
        "observe",
        "    fn(name, output)\n",
        "    return fn(name, output)\n",
    ),
    "replacement dropped": (
        laws.law_none_leaves_the_output,
        Hook,
        "__call__",
        "return self.act(self.name",
        "self.act(self.name",
    ),
    "hook installed before all names are known": (
        laws.law_an_unknown_name_installs_nothing,
        *EARLY_HOOK,
    ),
    "unknown name accepted": (
        laws.law_an_unknown_name_installs_nothing,
        hooks,
        "_module",
        'raise PatchError(f"no module {name!r} in {type(model).__name__}{near}") from None',
        "return model",
    ),
    "never-fired check removed": (
        laws.law_silence_is_an_error,
        HookRegistry,
        "_require_all_fired",
        "if silent:",
        "if not self.names:",
    ),
    "one hook left behind": (laws.law_no_residue, hooks, "_close", "in hooks:", "in hooks[1:]:"),
    "context left behind": (
        laws.law_no_residue,
        hooks,
        "_close",
        "_open_blocks.get() - {block}",
        "{block}",
    ),
    "all blocks closed at once": (
        laws.law_blocks_close_in_any_order,
        hooks,
        "_close",
        "_open_blocks.get() - {block}",
        "frozenset()",
    ),
    "other people's hooks removed": (laws.law_other_hooks_stay, *CLEARED),
    "no gate for threads": (
        laws.law_other_threads_are_untouched,
        Hook,
        "__call__",
        "if self.block not in _open_blocks.get():",
        "if False:",
    ),
    "a field forgotten in JSON": (
        laws.law_plans_survive_json,
        Plan,
        "to_json",
        "asdict(swap)",
        "asdict(replace(swap, part='kv'))",
    ),
    "lists kept as spelled": (
        laws.law_spelling_does_not_matter,
        swaps,
        "integers",
        "sorted({int(index(value)) for value in values})",
        "int(index(value)) for value in values",
    ),
    "first swap wins": (
        laws.law_the_last_swap_wins,
        Plan,
        "_tables",
        "in enumerate(self.swaps):",
        "in reversed([*enumerate(self.swaps)]):",
    ),
    "part ignored": (laws.law_the_last_swap_wins, Plan, "_tables", "in swap.part:", 'in "kv":'),
    "tokens ignored": (
        laws.law_the_last_swap_wins,
        plan,
        "_write",
        "torch.tensor(swap.tokens)",
        "torch.arange(tokens)",
    ),
    "donor's own swap followed": (laws.law_disjoint_swaps_commute, *READ_THROUGH),
    "donor of another row, self": (laws.law_identity, *OTHER_DONOR),
    "K and V swapped, self": (laws.law_identity, *VALUES_AS_KEYS),
    "pooled vector of the target leaked": (laws.law_all_sites_are_the_target, *POOLED_OF_TARGET),
    "donor of another row, own plan": (
        laws_of_calls.law_the_empty_plan_is_the_identity,
        *OTHER_DONOR,
    ),
    "donor's own swap followed, restored": (
        laws_of_calls.law_restoring_undoes_a_swap,
        *READ_THROUGH,
    ),
    "donor of another row, turned": (laws_of_calls.law_rows_are_equivariant, *OTHER_DONOR),
    "reader dropped, all sites": (laws.law_all_sites_are_the_target, *NO_READER),
    "i > s for i >= s": (laws.law_the_start_step, *LATE_STEP),
    "call counted from one": (laws.law_the_start_step, *LATE_CALL),
    "every row patched": (laws.law_unnamed_rows_are_untouched, *ALL_READERS),
    "off by one site": (laws.law_earlier_sites_are_unchanged, *NEXT_SITE),
    "image rows patched": (laws.law_image_keys_and_queries_are_untouched, *IMAGE_ROWS),
    "part not asked for patched": (
        laws_of_calls.law_patch_writes_the_named_cells_alone,
        taps,
        "at_text",
        "if part in parts:",
        "if True:",
    ),
    "heads in another order": (
        laws_of_calls.law_patch_writes_the_named_cells_alone,
        patching,
        "_mixed",
        "= stored.unflatten(-1, split)[t[:, None], h]",
        "= stored.unflatten(-1, split)[t[:, None], h.flip(0)]",
    ),
    "tokens forgotten by cache": (
        laws_of_calls.law_every_swap_is_a_patch,
        patching,
        "_mixed",
        "if heads is None and tokens",
        "if heads is None or tokens",
    ),
    "K and V captured the other way round": (
        laws_of_calls.law_captures_are_what_a_naive_hook_sees,
        taps,
        "at_text",
        'zip("kv",',
        'zip("vk",',
    ),
    "cache rounded": (
        laws.law_caches_survive_their_tensors,
        patching.KVCache,
        "tensors",
        "tensor.contiguous()",
        "tensor.float()",
    ),
    "labels turned round": (
        laws.law_caches_survive_their_tensors,
        caches,
        "_key",
        "_tuples(label)",
        "_tuples(label)[::-1]",
    ),
    "clone forgotten": (
        laws.law_caches_are_copies,
        patching,
        "capture",
        "part] = own[b].detach().clone()",
        "part] = own[b].detach()",
    ),
    "detach forgotten": (
        laws.law_caches_are_copies,
        patching,
        "capture",
        "part] = own[b].detach().clone()",
        "part] = own[b].clone()",
    ),
    "values not counted": (
        laws.law_estimates_are_exact,
        patching.KVCache,
        "estimate",
        "2 * width",
        "width",
    ),
    "K and V swapped": (laws.law_lock_step_is_capture_then_patch, *VALUES_AS_KEYS),
    "first step's cache": (laws.law_lock_step_is_capture_then_patch, *FIRST_STEP),
    "conditional branch only": (laws.law_lock_step_is_capture_then_patch, *COND_ONLY),
    "reader dropped": (laws.law_lock_step_is_capture_then_patch, *NO_READER),
    "donor of another row": (laws.law_lock_step_is_capture_then_patch, *OTHER_DONOR),
    "heads ignored": (laws.law_all_heads_are_the_site, *ALL_HEADS),
    "batch size not compared": (
        laws.law_rows_mean_their_labels,
        patching,
        "_require_rows",
        "if len(output) != len(labels):",
        "if False:",
    ),
    "labels not compared": (
        laws.law_rows_mean_their_labels,
        patching,
        "_require_distinct",
        "if repeated:",
        "if False:",
    ),
    "reader parted from its donor": (
        laws.law_micro_batches_change_nothing,
        packing,
        "_names_of_groups",
        "[*sorted(_needed(row.name, needs)), row.name]",
        "[row.name]",
    ),
    "donors of donors forgotten": (
        laws.law_micro_batches_change_nothing,
        packing,
        "_needed",
        "todo += new",
        "pass",
    ),
    "K and V injected the other way round": (
        laws.law_injection_is_a_swap,
        patching,
        "_own_bank",
        'zip("kv",',
        'zip("vk",',
    ),
    "injection allowed": (
        laws.law_evolving_text_refuses_injection,
        patching,
        "inject",
        "if not all(site.text_is_static for site in chosen):",
        "if False:",
    ),
    "one table for keys and values": (
        laws.law_slots_are_an_index,
        attention,
        "_attend",
        "slots_k if slots_v is None else slots_v",
        "slots_k",
    ),
    "stride of another bank": (
        laws.law_own_slots_are_the_identity,
        attention,
        "row_slots",
        "* tokens",
        "* (tokens - 1)",
    ),
    "own row read": (laws.law_the_order_of_the_bank_is_nothing, *OWN_ROW),
    "hidden tokens read": (
        laws.law_hidden_tokens_are_absent,
        attention,
        "_visible",
        "F.pad(~hidden,",
        "F.pad(hidden | True,",
    ),
    "NaN hidden": (
        laws.law_hidden_tokens_are_absent,
        attention,
        "attention_sdpa",
        "attn_mask=mask, scale=scale)",
        "attn_mask=mask, scale=scale).nan_to_num(0.0)",
    ),
    "donors cut from the graph": (
        laws.law_gradients_reach_the_donors,
        attention,
        "gather_text",
        "bank.transpose(1, 2)",
        "(bank.detach() + bank).mul(0.5).transpose(1, 2)",
    ),
    "recorded: i > s": (recorded("sd3", "patch_set_start4"), *LATE_STEP),
    "recorded: conditional branch only": (recorded("sd3", "neg_patch_2"), *COND_ONLY),
    "recorded: heads ignored": (recorded("if", "patch_7_heads"), *ALL_HEADS),
    "recorded: donor of another row": (recorded("sdxl", "nocfg_patch_13"), *OTHER_DONOR),
    "recorded: off by one site": (recorded("sdxl", "patch_set"), *NEXT_SITE),
    "recorded: first step's cache": (recorded("sd3", "patch_2", BY_CACHE), *FIRST_STEP),
    "recorded: K and V swapped": (recorded("sd3", "patch_2", BY_CACHE), *VALUES_AS_KEYS),
    "recorded: K and V injected the other way round": (
        recorded("sdxl", "inject_13", recorded_runs.by_injection),
        patching,
        "_own_bank",
        'zip("kv",',
        'zip("vk",',
    ),
    "recorded: pooled vector of another row": (
        recorded("if", "patch_set"),
        DeepFloydIF,
        "_pooled",
        "return pooled",
        "return pooled.roll(1, 0)",
    ),
    "recorded: noise of another step": (
        recorded("if", "A"),
        DDPM,
        "step",
        "self.deviation(share, now, after) * noise",
        "self.deviation(share, after, now) * noise",
    ),
    "recorded: variance guided, too": (
        recorded("if", "B"),
        denoising,
        "advance",
        "channels=x.shape[1]",
        "channels=2 * x.shape[1]",
    ),
    "recorded: input not scaled": (
        recorded("sdxl", "A"),
        InSigma,
        "model_input",
        "x / self._scale(step, steps)",
        "x",
    ),
}


EVERYWHERE = "sdxl", "if-i", "mmdit"
ELSEWHERE_NONE = {  # what is no fault on the other architectures
    "first step's cache": ["mmdit"],
    "image rows patched": ["if-i", "mmdit"],
    # where text is static all unconditional rows have one K and V
    "conditional branch only": ["mmdit"],
    "injection allowed": ["mmdit"],
    "K and V injected the other way round": ["sdxl", "if-i"],
}


def planted(fault: str):
    """Architectures that a fault is planted on.

    None for laws of one attention, and of recorded runs.
    """
    law = FAULTS[fault][0]
    alone = law.__annotations__["case"] is Attention or law.__name__ == "law_recorded"
    return [None] if alone else ELSEWHERE_NONE.get(fault, EVERYWHERE)


def make_case(law, architecture: str | None):
    return (
        make_attention()
        if law.__annotations__["case"] is Attention
        else fixed_case(architecture or "mmdit")
    )


@cache
def require(law, architecture: str | None) -> None:
    """The law holds."""
    law(make_case(law, architecture))


def require_noticed(law, architecture: str | None) -> None:
    """Require that the law does not hold, in a context of its own, which a fault may spoil."""
    case = make_case(law, architecture)
    with pytest.raises(AssertionError):
        copy_context().run(law, case)
