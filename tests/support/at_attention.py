"""Keys, values and masks exchanged at the attention call itself, with nothing of textpatch.

It is the oracle of ports: whichever modules make K and V, and whatever norms, rotations and paddings follow,
torch's scaled_dot_product_attention gets what is read.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class _Exchange(TorchFunctionMode):
    """Every row reads the text of another one, in each attention inside some modules.

    reads    row that each row of the batch reads
    text     keys that are text
    within   module that is running, by name.  None outside of all
    reached  names of the modules whose attention was reached
    """

    def __init__(self, reads: Sequence[int], text) -> None:
        super().__init__()
        self.reads = list(reads)
        self.text = text
        self.within = None
        self.reached = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or self.within is None:
            return func(*args, **kwargs)
        names = "query", "key", "value", "attn_mask"
        given = dict(zip(names, args, strict=False)) | kwargs
        self.reached.append(self.within)
        for name in ("key", "value"):
            given[name] = self._exchanged(given[name], dim=2)
        mask = given.get("attn_mask")
        if mask is not None and len(mask) == len(self.reads):
            given["attn_mask"] = self._exchanged(mask, dim=mask.dim() - 1)
        return func(**given)

    def _exchanged(self, x, dim):
        index = (slice(None),) * dim + (self.text,)
        new = x.clone()
        new[index] = x[self.reads][index]
        return new


def exchanged(model, inputs, modules: Sequence[str], reads: Sequence[int], text):
    """Output of a call in which each row reads another's text at some attention modules.

    text  keys that are text there, as a slice or as places
    """
    exchange = _Exchange(reads, text)

    def enter(name):
        def hook(module, args, kwargs=None):
            exchange.within = name

        return hook

    def leave(module, args, output):
        exchange.within = None

    with ExitStack() as stack:
        for name in modules:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        with torch.no_grad(), exchange:
            output = model(**inputs)
    assert list(dict.fromkeys(exchange.reached)) == list(modules), "each attends, in this order"
    return output if isinstance(output, torch.Tensor) else torch.stack(list(output[0]))
