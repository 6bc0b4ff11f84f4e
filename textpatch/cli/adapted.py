"""Parts of commands that make an adapter: its sites, its projections in words, pictures before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from textpatch.cli.workers import group_of_processes

BEFORE = "before"
AFTER = "after"


def sites_of(pipeline, asked: list[str]) -> tuple[int, ...]:
    """Indices of sites that were named, or of those localised for the model.   Raises PatchError for none."""
    from textpatch.groups import localized_group

    if asked == ["localized"]:
        return localized_group(pipeline, None)
    return localized_group(pipeline, asked)


def tell_projections(pipeline, sites: Sequence[int], what: str, changes: Mapping) -> None:
    """Print how many projections are changed, with how many parameters, and each by its name."""
    changed = sum(change.down.numel() + change.up.numel() for change in changes.values())
    total = sum(weight.numel() for weight in pipeline.denoiser.parameters())
    named = ", ".join(map(str, sites))
    print(
        f"{what} of sites {named}: {len(changes)} modules, {changed:,} parameters, "
        f"{changed / total:.2%} of the denoiser's {total:,}"
    )
    for name in changes:
        print(f"  {name}")


class Shown:
    """Pictures of some prompts under several states of a model, kept in a run folder as they are made.

    seed  of the noise, the same for all
    """

    def __init__(self, run, pipeline, prompts: Sequence[str], seed: int) -> None:
        self.run = run
        self.pipeline = pipeline
        self.prompts = list(prompts)
        self.seed = seed
        self.pictures = {record["id"]: record["pictures"] for record in run.records()}

    def draw(self, name: str, adapter=None) -> None:
        """Draw all prompts by the model as it is now, or under an adapter, unless that was done."""
        if name in self.pictures:
            return
        under = nullcontext() if adapter is None else adapter.applied(self.pipeline)
        with under:
            images = self.pipeline.generate(self.prompts, seeds=self.seed)
        self.pictures[name] = [self.run.image(image) for image in images]
        self.run.append({"id": name, "pictures": self.pictures[name]})

    def sheet(self) -> bytes:
        """Draw a line for each prompt and a column for each state, as PNG."""
        from textpatch.pictures import open_picture, png
        from textpatch.report.contact_sheet import draw_contact_sheet

        columns = [
            [(open_picture(self.run.folder / path), None) for path in paths]
            for paths in self.pictures.values()
        ]
        lines = list(zip(*columns, strict=True))
        names = list(self.pictures)
        return png(draw_contact_sheet(lines, captions=names, best=names.index(AFTER)))


@contextmanager
def training_processes(device: str) -> Iterator[None]:
    """Join torch's group of the processes that torchrun started, if there are several."""
    import os

    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    with group_of_processes("nccl" if device.startswith("cuda") else "gloo"):
        yield
