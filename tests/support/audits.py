"""An audit of a sampled run, and a case with swaps of every sort to audit."""

from dataclasses import replace

from support.strategies import fixed_case
from textpatch.auditing.replay import AuditReport, audit
from textpatch.plan import Plan, Swap
from textpatch.sampling import sample


def audited(pipeline, rows, plan, steps, guidance, **options) -> AuditReport:
    return audit(pipeline, rows, plan, sample=sample, steps=steps, guidance=guidance, **options)


def rich_case():
    """fixed_case with a swap in one branch alone, and step 0 named by no late swap."""
    case = fixed_case()
    return replace(
        case, plan=case.plan + Plan([Swap(1, "d", "a", steps=(0, 1), branch="cond", part="v")])
    )
