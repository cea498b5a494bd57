"""`export --format transformers`: the library loads the folder, and computes what the model here computes.

All weights are disturbed after loading, as by fine-tuning, so that what is written is the model and not its origin.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmattn import load
from mmattn.data.errors import UserError
from mmattn.tasks.translation import load as load_translation
from tests.conftest import refused, slow_but_first
from tests.public_speech import clips, recording, transcribed_by_transformers, write_whisper
from tests.tasks.public_folders import TARGETS, TEXTS, write, written_by_transformers
from tests.tasks.runs import ask, run
from tests.tasks.test_classification_pretrained import BASE

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def disturbed(predictor: Any) -> Any:
    """The predictor, all of whose weights are changed a little."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in predictor.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return predictor


def exported(predictor: Any, folder: Path) -> Path:
    (line,) = predictor.export(folder, ("transformers",))
    assert str(folder) in line
    return folder


@pytest.mark.parametrize("family", slow_but_first(["marian", "marian separate", "bart"], lambda name: name == "bart"))
def test_texts_of_encoder_decoders(family: str, tmp_path: Path) -> None:
    write(family, tmp_path / "public", num_beams=3, length_penalty=0.8)
    ours = disturbed(load_translation(tmp_path / "public", device="cpu"))
    folder = exported(ours, tmp_path / "theirs")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert (theirs.generation_config.num_beams, theirs.generation_config.length_penalty) == (3, 0.8)
    if family == "bart":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer.pad_token_id == ours.processor.source.pad_id
    else:
        tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    found = [prediction.translation for prediction in ours.predict(TEXTS)]
    assert found == written_by_transformers((theirs, tokenizer), TEXTS)
    ids = tokenizer(TEXTS[:2], return_tensors="pt", padding=True)
    start = torch.full((2, 3), theirs.config.decoder_start_token_id)
    with torch.no_grad():
        wanted = theirs(input_ids=ids.input_ids, attention_mask=ids.attention_mask, decoder_input_ids=start).logits
        logits = ours.model.net(ids.input_ids, ids.attention_mask.bool(), start)
    torch.testing.assert_close(getattr(logits, "logits", logits), wanted, atol=1e-4, rtol=1e-4)


def test_transcripts_of_whisper(tmp_path: Path) -> None:
    write_whisper(tmp_path / "public")
    ours = disturbed(load(tmp_path / "public", device="cpu"))
    folder = exported(ours, tmp_path / "theirs")
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    assert (extractor.feature_size, extractor.chunk_length) == (10, 2)
    tokenizer = transformers.WhisperTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    waves = clips((1.0, 1.7))
    found = [prediction.text for prediction in ours.predict([recording(wave) for wave in waves], language="de")]
    assert any(found)
    assert found == transcribed_by_transformers((theirs, extractor, tokenizer), waves, language="de", task="transcribe")


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
def test_heads_of_bert(head: str, tmp_path: Path, pair_tokenizer: Any) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    labels = {} if head.endswith("Answering") else {"id2label": {0: "good", 1: "bad", 2: "neither"}}
    config = transformers.BertConfig(vocab_size=25, max_position_embeddings=64, **sizes, **labels)
    torch.manual_seed(0)
    getattr(transformers, f"Bert{head}")(config).save_pretrained(tmp_path / "public")
    pair_tokenizer.save(str(tmp_path / "public" / "tokenizer.json"))
    ours = disturbed(load(tmp_path / "public", device="cpu"))
    folder = exported(ours, tmp_path / "theirs")
    theirs = getattr(transformers, f"AutoModel{head}").from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "who keeps the goat ?"
    with torch.no_grad():
        if ours.task == "qa":
            given = tokenizer(text, "ada keeps the goat", return_tensors="pt")
            types = given.token_type_ids
            found = ours.model(given.input_ids, given.attention_mask.bool(), types)
            wanted = theirs(**given)
            spans = torch.stack([wanted.start_logits, wanted.end_logits], dim=-1)
            inside = (types == 1) & (torch.arange(types.shape[1]) < types.shape[1] - 1)
            own = torch.stack([found.start_logits, found.end_logits], dim=-1)
            torch.testing.assert_close(own[inside], spans[inside], atol=1e-5, rtol=1e-5)
            return
        logits = theirs(**tokenizer(text, return_tensors="pt")).logits[0]
    names = [theirs.config.id2label[int(index)] for index in logits.argmax(-1).reshape(-1)]
    prediction = ours(text)
    if head == "ForTokenClassification":
        assert prediction.labels == names[1:-1]
    else:
        assert prediction.label == names[0]
        assert prediction.score == pytest.approx(float(logits.softmax(-1).max()), abs=1e-4)


@pytest.mark.slow
def test_classes_of_vit(tmp_path: Path) -> None:
    """A public backbone with a classifier for the classes of a run, from the shell."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "public")
    model = run("fit", tmp_path / "run", f"--init_from {tmp_path / 'public'}", BASE, task="classification") / "model"
    folder = tmp_path / "theirs"
    ask("export", "--checkpoint", model, "--format", "transformers", "--output", folder, task="classification")
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = Image.effect_mandelbrot((32, 32), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    with torch.no_grad():
        scores = theirs(**processor(image, return_tensors="pt")).logits[0].softmax(-1)
    prediction = load(model, device="cpu")(image)
    assert prediction.label == theirs.config.id2label[int(scores.argmax())]
    assert prediction.score == pytest.approx(float(scores.max()), abs=1e-3)


def test_what_transformers_cannot_compute_is_refused(tmp_path: Path) -> None:
    for name in ("translation/demo", "vqa/demo", "qa/demo"):
        model = load(name, device="cpu")
        refused("transformers has no class that computes the same", exported, model, tmp_path / "a", error=UserError)
        assert not (tmp_path / "a").exists()
    write("marian", tmp_path / "public")
    ours = load(tmp_path / "public", device="cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    refused("expected a new or empty folder", exported, ours, tmp_path / "other", error=UserError)
    packed = load(tmp_path / "public", device="cpu", precision="float32")
    refused("without packed weights", exported, packed, tmp_path / "a", error=UserError)


def test_continuations_of_gpt2(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    (tmp_path / "public").mkdir()
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([*TEXTS, *TARGETS], 300, special_tokens=["<|endoftext|>"])
    trained.save(str(tmp_path / "public" / "tokenizer.json"))
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 0, "bos_token_id": 0}
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=trained.get_vocab_size(), **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "public")
    ours = disturbed(load(tmp_path / "public", device="cpu"))
    folder = exported(ours, tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(1, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = ours.model(ids, torch.ones_like(ids).bool()).logits, theirs(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("the old dog", return_tensors="pt").input_ids
    whole = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    assert ours("the old dog", max_new_tokens=12).text == tokenizer.decode(whole[0][prompt.shape[1] :])
