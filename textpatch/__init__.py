"""textpatch finds and uses the few attention layers through which a text-to-image model writes words."""

import importlib
import sys
from typing import Any

_HOMES = {
    "attention": "segment_attention",
    "auditing.replay": "audit",
    "editing.comparing": "compare",
    "editing.inversion": "Inversion invert",
    "editing.methods": "edit",
    "editing.real_pictures": "PictureEdit edit_picture",
    "editing.result": "Edit",
    "errors": "PatchError",
    "foreign.wrapping": "wrap",
    "hooks": "HookRegistry",
    "localization.heads": "head_search",
    "localization.layers": "Localization localize",
    "localization.start_step": "start_curve",
    "localization.trials": "Trials",
    "maps.hearing": "hearing_words",
    "maps.word_maps": "AttentionMap attention_map",
    "cache": "KVCache",
    "patching": "capture inject patch",
    "plan": "Plan Row Swap Window",
    "ports.matching": "SiteSpec",
    "ports.shipped": "find_sites",
    "prompts.pairs": "Pair",
    "runs.folder": "Run",
    "safety.sanitizing": "Sanitized sanitize",
    "sampling": "Samples sample",
    "swapping": "swap",
    "sites": "Site Span",
    "testing": "check_port",
    "tuning.finetuning": "finetune",
    "tuning.low_rank": "Adapter",
    "tuning.rewriting": "rewrite",
    "weights": "load load_adapter load_denoiser",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line answers without torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("textpatch")
    if name not in _HOME_OF:
        from textpatch.errors import closest

        message = f"module 'textpatch' has no attribute {name!r}{closest(name, __all__)}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])
    return getattr(importlib.import_module(f"textpatch.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """All public names, used or not, so that a prompt completes them."""
    return sorted({*globals(), *__all__, "__version__"})
