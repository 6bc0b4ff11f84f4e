"""The public names, for tools that read types; `__init__.py` imports each when it is first used."""

from textpatch.attention import segment_attention as segment_attention
from textpatch.auditing.replay import audit as audit
from textpatch.cache import KVCache as KVCache
from textpatch.editing.comparing import compare as compare
from textpatch.editing.inversion import Inversion as Inversion
from textpatch.editing.inversion import invert as invert
from textpatch.editing.methods import edit as edit
from textpatch.editing.real_pictures import PictureEdit as PictureEdit
from textpatch.editing.real_pictures import edit_picture as edit_picture
from textpatch.editing.result import Edit as Edit
from textpatch.errors import PatchError as PatchError
from textpatch.foreign.wrapping import wrap as wrap
from textpatch.hooks import HookRegistry as HookRegistry
from textpatch.localization.heads import head_search as head_search
from textpatch.localization.layers import Localization as Localization
from textpatch.localization.layers import localize as localize
from textpatch.localization.start_step import start_curve as start_curve
from textpatch.localization.trials import Trials as Trials
from textpatch.maps.hearing import hearing_words as hearing_words
from textpatch.maps.word_maps import AttentionMap as AttentionMap
from textpatch.maps.word_maps import attention_map as attention_map
from textpatch.patching import capture as capture
from textpatch.patching import inject as inject
from textpatch.patching import patch as patch
from textpatch.plan import Plan as Plan
from textpatch.plan import Row as Row
from textpatch.plan import Swap as Swap
from textpatch.plan import Window as Window
from textpatch.ports.matching import SiteSpec as SiteSpec
from textpatch.ports.shipped import find_sites as find_sites
from textpatch.prompts.pairs import Pair as Pair
from textpatch.runs.folder import Run as Run
from textpatch.safety.sanitizing import Sanitized as Sanitized
from textpatch.safety.sanitizing import sanitize as sanitize
from textpatch.sampling import Samples as Samples
from textpatch.sampling import sample as sample
from textpatch.sites import Site as Site
from textpatch.sites import Span as Span
from textpatch.swapping import swap as swap
from textpatch.testing import check_port as check_port
from textpatch.tuning.finetuning import finetune as finetune
from textpatch.tuning.low_rank import Adapter as Adapter
from textpatch.tuning.rewriting import rewrite as rewrite
from textpatch.weights import load as load
from textpatch.weights import load_adapter as load_adapter
from textpatch.weights import load_denoiser as load_denoiser

__all__: list[str]
__version__: str

def __dir__() -> list[str]: ...
