"""VQA from public encoders: of the image, of the question, and of both."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn import load
from mmattn.pretrained import load_pretrained
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.vqa.demo import make
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import BRIEF, run

BASE = f"{BRIEF} --data.demo_size 6 --data.batch_size 12 --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 32"
QUESTION = "what color is the object left of it ?"


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny BERT with its tokenizer, saved by transformers, and a tiny network of timm."""
    transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    root = tmp_path_factory.mktemp("public")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *QUESTION.split(), "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=len(words) + 3, intermediate_size=32, max_position_embeddings=40, **sizes
    )
    transformers.BertModel(config).save_pretrained(root / "text")
    tokenizer.save(str(root / "text" / "tokenizer.json"))
    given = timm.create_model("test_resnet", num_classes=5)
    torch.nn.init.normal_(given.bn1.running_mean)
    timm.models.save_for_hf(given, root / "image", safe_serialization=True)
    return {"image": root / "image", "text": root / "text"}


@pytest.mark.parity
@pytest.mark.parametrize("which", ["image", "text", "both"])
def test_fit_from_public_encoders(which: str, public: dict[str, Path], tmp_path: Path) -> None:
    """Their weights and preprocessing are kept; the trained model predicts, explains, and is loaded again."""
    words = (
        str(public[which])
        if which in public
        else json.dumps({k: str(v) for k, v in public.items()}, separators=(",", ":"))
    )
    options = f"{BASE} --data.image_size 64 --model.freeze pretrained --init_from {words}"
    predictor = load(run("fit", tmp_path / "run", options, "", task="vqa") / "model", device="cpu")
    sample = make("test", 1)[0]
    predictor(sample)
    explanation = predictor.explain(sample)
    assert explanation.attention.shape == predictor.model.grid_size
    if which != "text":
        import timm

        theirs = timm.create_model("test_resnet", num_classes=5).eval()
        from safetensors.torch import load_file

        theirs.load_state_dict(load_file(public["image"] / "model.safetensors"))
        images = torch.randn(2, 3, 64, 64)
        features = predictor.model.image_encoder.stem.body.forward_features(images)
        torch.testing.assert_close(features, theirs.forward_features(images), atol=1e-4, rtol=0)
    if which != "image":
        ids, mask = predictor.processor.encode([QUESTION])
        assert ids.tolist() == [[2, *range(4, 13), 3]]
        states = predictor.model.text_encoder(ids, mask).states
        torch.testing.assert_close(states, load_pretrained(public["text"])(ids, mask).states, atol=1e-4, rtol=0)
        assert predictor(sample).question == sample.question
        assert predictor.processor.tokenizer.unknown_words("what about it ?") == ["about"]


@pytest.mark.parity
@pytest.mark.parametrize("name", slow_but_first(["ViT", "Dinov2", "SiglipVision"]))
def test_public_vit_folders(name: str, public: dict[str, Path], tmp_path: Path) -> None:
    """With the text encoder; the images' features are kept beside the run while it lasts."""
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    sizes |= {"patch_size": 8} | ({"mlp_ratio": 2} if name == "Dinov2" else {"intermediate_size": 24})
    folder = tmp_path / "image"
    getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)).save_pretrained(folder)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    words = json.dumps({"image": str(folder), "text": str(public["text"])}, separators=(",", ":"))
    options = f"{BASE} --model.freeze pretrained --init_from {words}"
    predictor = load(run("fit", tmp_path / "run", options, "", task="vqa") / "model", device="cpu")
    assert predictor.processor.image.size == (32, 32)
    assert predictor.processor.image.mean == (0.1, 0.2, 0.3)
    images = torch.randn(2, 3, 32, 32)
    ours = predictor.model.image_encoder.stem.body_features(images).flatten(2).mT
    torch.testing.assert_close(ours, load_pretrained(folder)(images).states[:, -16:], atol=1e-4, rtol=0)
    assert predictor.explain(make("test", 1)[0]).attention.shape == (4, 4)


@pytest.mark.parity
def test_electra_reads_questions(public: dict[str, Path], tmp_path: Path) -> None:
    """The head takes states of the encoder's width, which is not the size of its embeddings."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "embedding_size": 10}
    config = transformers.ElectraConfig(vocab_size=20, intermediate_size=32, max_position_embeddings=40, **sizes)
    transformers.ElectraForPreTraining(config).save_pretrained(tmp_path)
    shutil.copy(public["text"] / "tokenizer.json", tmp_path)
    parts = read_parts("vqa", {"text": str(tmp_path)})
    size = len(parts.state["text_encoder.embedding.weight"])  # the tokenizer's
    more = {"vocab_size": size, "num_answers": 3, "embed_dim": 16, "num_heads": 2}
    model = parts.adapter.build({**parts.keywords, **more}).eval()
    missing, unexpected = model.load_state_dict(parts.state, strict=False)
    assert not unexpected
    assert not any(name.startswith("text_encoder.") for name in missing)
    ids, mask = torch.randint(4, size, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    states = model.text_encoder(ids, mask).states
    torch.testing.assert_close(states, load_pretrained(tmp_path)(ids, mask).states, atol=1e-5, rtol=0)
    assert model(torch.randn(2, 3, 64, 64), ids, mask).logits.shape == (2, 3)


@pytest.mark.parity
def test_mistakes(public: dict[str, Path]) -> None:
    image, text = map(str, public.values())
    for given in ({"image": text}, {"picture": image}, {"image": image, "text": image}):
        refused(
            "expected image: a public encoder and text: a public encoder",
            read_parts,
            "vqa",
            given,
            error=CheckpointError,
        )
    given = {"text": "translation/demo"}
    refused("expected one model for translation", read_parts, "translation", given, error=CheckpointError)
