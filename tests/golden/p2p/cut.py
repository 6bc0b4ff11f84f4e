"""Cut the recorded Prompt-to-Prompt down to what the tests hold.

Of each run the target's latents after each step, of one the source's, and the masks of local blends; of the
word mappers what is not the identity's.  It copies and selects:

    python tests/golden/p2p/cut.py <the folder of all applications>
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SETTINGS = (
    "edit prompts steps latent_size cross_replace_steps self_replace_steps negative mapper_rule equalizer "
    "local_blend_words local_blend_threshold attn_res controllers init_noise"
).split()
WANTED_INPUTS = (
    "prompt_embeds pooled negative time_ids init_noise. timesteps t_emb sigmas input_scale".split()
)


def main(source: Path, out: Path) -> None:
    """Write runs, inputs, aligners and joint runs, each with what it is made of."""
    described = json.loads((source / "p2p" / "runs.json").read_text())
    recorded = load_file(source / "p2p" / "runs_float64.safetensors")
    inputs = load_file(source / "p2p" / "inputs.safetensors")
    tensors = {"plain.source": recorded["plain.latents"][:, 0].contiguous()}
    for run in described["runs"]:
        name = run["name"]
        tensors[f"{name}.target"] = recorded[f"{name}.latents"][:, 1:].contiguous()
        if f"{name}.mask" in recorded:
            tensors[f"{name}.mask"] = recorded[f"{name}.mask"]
    save_file(tensors, out / "runs.safetensors")
    save_file(
        {k: v for k, v in inputs.items() if k.startswith(tuple(WANTED_INPUTS))},
        out / "inputs.safetensors",
    )
    runs = {
        run["name"]: {key: run[key] for key in SETTINGS if key in run} for run in described["runs"]
    }
    prompts = {one["prompt"]: [one["pieces"], one["ids"]] for one in described["prompts"]}
    said = {"guidance_scale": described["guidance_scale"], "prompts": prompts, "runs": runs}
    (out / "runs.json").write_text(json.dumps(said, indent=1) + "\n")
    aligners = json.loads((source / "p2p" / "aligners.json").read_text())
    (out / "aligners.json").write_text(json.dumps(cut_aligners(aligners)) + "\n")
    joint, said = {}, {}
    for family in ("if", "sd3"):
        folder = source / "p2p_joint" / family
        for key, value in load_file(folder / "runs_float64.safetensors").items():
            if key.endswith(".latents"):
                joint[f"{family}.{key}"] = value[:, 1].contiguous()
            elif "." not in key or key.startswith("w."):
                joint[f"{family}.{key}"] = value
        said[family] = json.loads((folder / "runs.json").read_text())["runs"]
    save_file(joint, out / "joint.safetensors")
    (out / "joint.json").write_text(json.dumps(said, indent=1) + "\n")


def cut_aligners(aligners: dict) -> dict:
    """Pairs of each tokenizer with ids, tokens of every word and mappers, and the windows."""
    pairs = {}
    for tokenizer, recorded in aligners["tokenizers"].items():
        pairs[tokenizer] = [cut_pair(pair) for pair in recorded]
    kept = ("windows", "self_windows", "equalizers")
    return {"pairs": pairs, **{key: aligners[key] for key in kept}}


def cut_pair(pair: dict) -> dict:
    """A pair whose mappers are given where they are not the identity's."""
    names = [
        f"{side}{what}" for side in ("source", "target") for what in ("", "_ids", "_word_tokens")
    ]
    kept = {name: pair[name] for name in names}
    kept["replace"] = None
    if "official" in pair.get("replace", {}):
        kept["replace"] = {
            rule: off_identity(pair["replace"][rule]) for rule in ("official", "corrected")
        }
    kept["refine"] = [[n, m] for n, m in enumerate(pair["refine"]["mapper"]) if m != n]
    return kept


def off_identity(entries: list) -> list:
    """Entries [source, target, value] of a mapper that differ from the identity's."""
    matrix = torch.zeros(77, 77, dtype=torch.float64)
    for m, n, value in entries:
        matrix[m, n] = value
    places = (matrix != torch.eye(77, dtype=torch.float64)).nonzero().tolist()
    return [[m, n, matrix[m, n].item()] for m, n in places]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
