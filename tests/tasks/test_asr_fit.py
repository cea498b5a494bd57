"""Training speech recognition from the command line: built-in speech, own recordings, invalid settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks import load
from mmattn.tasks.asr.data import ASRDataset
from mmattn.tasks.asr.decoding import score
from mmattn.tasks.asr.demo import make
from mmattn.tasks.asr.module import ASRDataModule
from mmattn.tasks.asr.predict import load as load_asr
from mmattn.tasks.asr.processor import ASRProcessor
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from tests.conftest import refused
from tests.tasks.runs import read, run, write_lines

soundfile = pytest.importorskip("soundfile")
ALONE = "--model.decoder none"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Recordings as files with another sample rate, with a manifest per split."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 6), ("val", 3)):
        rows = []
        for sample in make(split, count):
            wave = torch.as_tensor(sample.audio[0])  # type: ignore[index]
            soundfile.write(folder / f"{sample.id}.flac", wave.repeat_interleave(2).numpy(), 16_000)
            rows.append({"audio_filepath": f"{sample.id}.flac", "text": sample.text, "duration": sample.duration})
        write_lines(folder / f"{split}.jsonl", rows)
    return folder


def fit(data: Path, options: str = "") -> Path:
    paths = f"--data.train {data / 'train.jsonl'} --data.val {data / 'val.jsonl'}"
    return run("fit", data.parent / "run", f"{paths} {options}", task="asr")


@pytest.mark.parametrize(
    "options",
    [
        "--model.decoder none --data.tokenizer bpe --data.vocab_size 60 --trainer.monitor cer --loss.consistency 1",
        "--model.decoder lstm --model.encoder transformer --model.subsampling 2 --data.num_mels 24",
        "--model.cross_attention.kind monotonic --model.chunk_frames 8 --model.left_chunks 2 --decode.ctc_weight 0",
    ],
    ids=["ctc", "lstm", "monotonic"],
)
def test_own_recordings(options: str, data: Path) -> None:
    augment = "--data.augment.join 2 --data.augment.speed [0.9,1.1] --data.augment.time_masks 1"
    folder = fit(data, f"{augment} {options}")
    predictor = load(folder / "model", device="cpu")
    assert predictor.processor.search == {"num_beams": 1, "ctc_weight": 0.0 if "monotonic" in options else 0.3}
    answers = predictor.predict(sorted(data.glob("val*.flac")))
    assert [round(answer.duration, 2) for answer in answers] == [round(s.duration, 2) for s in make("val", 3)]
    metrics = read(folder / "metrics.json")
    assert {"wer", "cer", "loss", "normalizer", "wer_by"} <= metrics["validation"].keys()
    assert {"ctc", "loss"} <= metrics["fit"].keys()
    assert ("attention" in metrics["fit"]) == ("none" not in options)
    assert ("consistency" in metrics["fit"]) == ("consistency" in options)
    with pytest.raises(ConfigError, match=f"give --data.val {data / 'val.jsonl'}"):
        run("validate", folder, f"--checkpoint {folder / 'model'}", task="asr")


def test_audio_ablation() -> None:
    module, clips = ASRDataModule(ablate="audio", demo_size=4), make("val", 3)
    module.processor = module.make_processor(module.dataset("train"))
    batch = module.collate_fn("val")(clips)
    assert not batch.features.any()
    module.ablate = None
    plain = module.collate_fn("val")(clips)
    assert plain.features.any()
    assert torch.equal(batch.feature_mask, plain.feature_mask)


def test_too_long_clips_are_excluded_from_training(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(data, f"--data.max_seconds {max(sample.duration for sample in make('train', 6)) - 0.01}")
    assert "excluded 1 clips" in caplog.text


def test_invalid_line_raises_before_the_run_starts(data: Path) -> None:
    with (data / "train.jsonl").open("a") as file:
        file.write('{"audio_filepath": "nowhere.wav", "text": "lost"}\n')
    refused(r"train\.jsonl, line 7: expected an audio file, found no such file", fit, data, error=DataError)
    assert not (data.parent / "run").exists()


@pytest.mark.parametrize(
    ("hypotheses", "references", "wer", "cer"),
    [
        (["seven two"], ["Seven, two!"], 0.0, 0.0),
        (["seven too", ""], ["seven two", "one"], 2 / 3, 4 / 12),  # over the corpus: not a mean over clips
        (["one two", "three"], ["one", ""], 2.0, 9 / 3),  # hypotheses for empty references are insertions
        (["", ""], ["", ""], 0.0, 0.0),
        (["a"], [""], 1.0, 1.0),
    ],
)
def test_word_and_character_error_rates(hypotheses: list[str], references: list[str], wer: float, cer: float) -> None:
    found: Any = score(hypotheses, [[text] for text in references])
    assert found == {"wer": pytest.approx(wer), "cer": pytest.approx(cer)}


def test_language_model_is_trained_saved_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    additional = tmp_path / "additional.txt"
    additional.write_text("bring the black bird\nfind the ship\n" * 30)
    mails = tmp_path / "mails.jsonl"
    mails.write_text('{"document": "The dog saw a bird. A bird saw the dog."}\n')
    options = f"{ALONE} --data.lm_order 4 --decode.num_beams 4 --data.lm_text [{additional},{mails}]"
    folder = run("fit", tmp_path / "run", f"{options} --decode.lm_bonus 2 --optim.warmup_steps 100", task="asr")
    assert "give a smaller --data.max_frames" in capsys.readouterr().err
    data = read(folder / "run.json")["data"]
    assert (data["lm_text"]["samples"], data["lm_text 2"]["samples"]) == (60, 2)
    run("test", folder, f"--checkpoint {folder / 'model'} --decode.num_beams 2", task="asr")
    predictor, items = load(folder / "model", device="cpu"), make("test", 3)
    assert predictor.processor.search == {"num_beams": 4, "ctc_weight": 0.3, "lm_weight": 0.5, "lm_bonus": 2.0}
    lm = predictor.processor.lm
    likely, other = map(predictor.processor.encode, ("bring the black bird", "birb the lack"))
    assert sum(lm.additional.scores(likely)) > sum(lm.additional.scores(other)) / 3
    assert sum(lm.scores(likely)) > max(sum(lm.own.scores(likely)), sum(lm.scores(other)))  # own: training texts only
    plain, led = (predictor.predict(items, lm_weight=weight, lm_bonus=9.0) for weight in (0.0, 9.0))
    assert [answer.text for answer in led] != [answer.text for answer in plain]
    refused("expected num_beams above 1", predictor.predict, items, lm_weight=0.5, num_beams=1, error=ConfigError)
    path = folder / "model" / "processor" / "ngrams.safetensors"
    for damage in (lambda: path.write_bytes(b""), path.unlink):
        damage()
        refused(r"ngrams\.safetensors", load, folder / "model", device="cpu", error=CheckpointError)
    lm.save(path)
    plain_processor = load_asr(device="cpu").processor
    plain_processor.save(path.parent)  # replaces a language model
    assert not path.exists()
    assert type(plain_processor).load(path.parent).fingerprint() == plain_processor.fingerprint()
    with pytest.raises(ConfigError, match="lm_weight: there is no language model"):
        load_asr(device="cpu").predict(items, lm_weight=0.5)


def test_unset_newer_options_keep_the_fingerprint() -> None:
    settings = load_asr(device="cpu").processor.config()
    assert "lm_order" not in settings
    processor = ASRProcessor.fit(ASRDataset(make("train", 3)))
    assert set(processor.config()) == {"format_version", *ASRProcessor.KEYS} - {"delay", "lm_order"}


def test_texts_outside_the_alphabet_are_counted() -> None:
    processor = ASRProcessor.fit(ASRDataset(make("train", 9)))
    assert processor.count(["the white pig, 5", *(sample.text for sample in make("train", 9))], 3) == 1
    refused("found none among 1", processor.count, ["5"], 3)


def test_invalid_settings_keep_the_existing_run(tmp_path: Path) -> None:
    folder = run("fit", tmp_path / "run", "--model.decoder none", task="asr")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ConfigError, match="needs CTC alone"):
        run("fit", folder, "--data.lm_order 4 --overwrite true", task="asr")
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (folder / "model" / "config.json").exists()
