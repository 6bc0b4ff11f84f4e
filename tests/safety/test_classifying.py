"""A classifier of transformers is a detector: by its own probabilities, from files alone."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from support.planting import plant
from textpatch import PatchError
from textpatch.safety.classifying import Classified

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "calm", "grump", "tree"]
TEXTS = ["calm", "grump", "tree grump", "calm calm", "tree"]
LABELS = ["fine", "insult", "threat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a small network with random weights and three labels."""
    made = tmp_path_factory.mktemp("classifier")
    (made / "vocab.txt").write_text("\n".join(VOCABULARY))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=6,
        initializer_range=2.0,
        id2label=dict(enumerate(LABELS)),
    )
    BertForSequenceClassification(config).save_pretrained(made)
    BertTokenizer(str(made / "vocab.txt")).save_pretrained(made)
    return made


def probabilities(folder) -> torch.Tensor:
    """(texts, labels), by the network alone."""
    network = BertForSequenceClassification.from_pretrained(folder).eval()
    ids = [[2, *(VOCABULARY.index(word) for word in text.split()), 3] for text in TEXTS]
    with torch.no_grad():
        return torch.stack([network(torch.tensor([one])).logits[0].softmax(0) for one in ids])


def require_its_probabilities(folder):
    """A text is harmful exactly where the harmful labels' probabilities reach the threshold."""
    for harmful in (["insult"], ["insult", "threat"]):
        shares = probabilities(folder)[:, [LABELS.index(name) for name in harmful]].sum(1)
        middle = float(shares.sort().values[1:3].mean())
        detector = Classified(folder, harmful, threshold=middle)
        found = [detector(text) for text in TEXTS]
        assert found == [bool(share >= middle) for share in shares] and len(set(found)) == 2


def test_a_text_is_harmful_by_the_networks_probabilities(folder):
    """Of one label and of two, from the files that save_pretrained writes."""
    require_its_probabilities(folder)


@pytest.mark.parametrize("share", ["[self._places].min()", "[[0]].sum()"])
def test_another_share_is_noticed(folder, share, monkeypatch):
    """Faults: the least of the harmful labels alone, and a harmless one."""
    plant(monkeypatch, Classified, "_share", "[self._places].sum()", share)
    with pytest.raises(AssertionError):
        require_its_probabilities(folder)


def test_several_labels_at_once_are_asked_one_by_one(folder, tmp_path):
    """A network trained for several labels is harmful by the largest sigmoid."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        (answer,) = network(torch.tensor([[2, 6, 3]])).logits
    share = float(answer.sigmoid()[1:].max())
    for threshold in ((share + 1) / 2, share / 2):
        detector = Classified(tmp_path, ["insult", "threat"], threshold=threshold)
        assert detector("grump") is (share >= threshold)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(harmful=["insults"]), "no label 'insults'; closest: insult"),
        (dict(harmful=[]), "0 of 3 labels"),
        (dict(harmful=LABELS), "3 of 3 labels"),
        (dict(threshold=1.5), "threshold is 1.5"),
    ],
)
def test_what_asks_nothing_is_refused(folder, change, says):
    """Labels that are not there, none, all, and a threshold that nothing reaches."""
    with pytest.raises(PatchError, match=says):
        Classified(folder, **{"harmful": ["insult"], **change})


def test_a_text_too_long_is_refused(folder):
    """A classifier that reads a part alone would pass the rest."""
    with pytest.raises(PatchError, match="7 tokens .* reads 6"):
        Classified(folder, ["insult"])("calm calm calm calm calm")


def test_other_folders_are_refused(tmp_path):
    """An empty folder, one without weights, and one whose weights would be unpickled."""
    with pytest.raises(PatchError, match="no config.json"):
        Classified(tmp_path, ["insult"])
    (tmp_path / "config.json").write_text(json.dumps(BertConfig(num_labels=3).to_dict()))
    with pytest.raises(PatchError, match="no text classifier in safetensors"):
        Classified(tmp_path, ["insult"])
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(PatchError, match="no text classifier in safetensors"):
        Classified(tmp_path, ["insult"])
