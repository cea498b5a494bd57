"""Features and tokenizers of public speech models against those of transformers."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmattn.data.audio.mel import WaveFeatures, WhisperFeatures, features_from_config, read_features, slaney_bands
from mmattn.tasks.asr.public_processors import CTCText, WhisperText
from mmattn.tasks.asr.whisper import WhisperStream
from tests.conftest import refused
from tests.data.files import bad_data, write
from tests.public_speech import LETTERS, write_whisper

TEXTS = ["the old dog carries a basket", "HELLO WORLD", "Nine, two; 3 Wörter!", "  spaces   here ", "日本 x", ""]


def sound(seconds: float, seed: int = 0) -> Tensor:
    """Noise of rising level that ends in silence, and a tone."""
    time = torch.arange(round(seconds * 16_000)) / 16_000
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
    wave = 0.1 * noise * time.div(seconds).square() + 0.3 * torch.sin(2 * torch.pi * 440 * time)
    return wave * (time < 0.8 * seconds)


@pytest.mark.parity
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("seconds", [1, 29.9, 45])
def test_whisper_features_equal_transformers(seconds: float, n_mels: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    theirs.save_pretrained(tmp_path)
    ours = read_features(tmp_path)
    assert isinstance(ours, WhisperFeatures)
    wave, options = sound(seconds), {"sampling_rate": 16_000, "return_tensors": "pt"}
    expected = theirs(wave.numpy(), **options).input_features[0]
    found = ours(wave)
    assert found.shape == (3000, n_mels)
    torch.testing.assert_close(found, expected.T, atol=1e-4, rtol=0)
    whole = ours(wave, whole=True)
    if seconds <= 30:
        assert torch.equal(whole, found)
        return
    expected = theirs(wave.numpy(), truncation=False, padding="longest", **options).input_features[0]
    assert whole.shape == (4500, n_mels)
    torch.testing.assert_close(whole, expected.T, atol=1e-4, rtol=0)
    assert not torch.allclose(whole[:3000], found, atol=1e-4)  # another loudest frame


@pytest.mark.parity
def test_whisper_batches_and_silence() -> None:
    transformers = pytest.importorskip("transformers")
    theirs, options = transformers.WhisperFeatureExtractor(), {"sampling_rate": 16_000, "return_tensors": "pt"}
    waves = [sound(2), torch.zeros(16_000), sound(31, seed=1), sound(0.0007)]
    expected = theirs([wave.numpy() for wave in waves], **options).input_features
    found, mask = WhisperFeatures().batch(waves)
    assert mask.sum(1).tolist() == [200, 100, 3000, 1]
    torch.testing.assert_close(found, expected.mT, atol=1e-4, rtol=0)
    odd = sound(30.0171)  # not a whole number of frames
    expected = theirs(odd.numpy(), truncation=False, padding="longest", **options).input_features[0].T
    torch.testing.assert_close(WhisperFeatures()(odd, whole=True), expected, atol=1e-4, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), [(16_000, 400, 80), (16_000, 400, 128), (8_000, 256, 20)])
def test_slaney_mel_filters(rate: int, n_fft: int, n_mels: int) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    options = {"norm": "slaney", "mel_scale": "slaney"}
    expected = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, n_mels, rate, **options)
    torch.testing.assert_close(slaney_bands(rate, n_fft, n_mels, 0.0, rate / 2).float(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_wav2vec2_features_equal_transformers(normalize: bool, masked: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=masked)
    theirs.save_pretrained(tmp_path)
    ours = read_features(tmp_path)
    assert isinstance(ours, WaveFeatures)
    waves, options = [sound(s) + 0.2 for s in (1, 29.9, 45)], {"sampling_rate": 16_000, "return_tensors": "pt"}
    expected = [theirs(wave.numpy(), **options).input_values[0] for wave in waves]
    for wave, values in zip(waves, expected, strict=True):
        torch.testing.assert_close(ours(wave), values, atol=1e-4, rtol=0)
    found, mask = ours.batch(waves)
    together = theirs([wave.numpy() for wave in waves], padding=True, **options)
    assert mask.sum(1).tolist() == list(map(len, waves))
    if masked:
        assert torch.equal(mask.int(), together.attention_mask)
        torch.testing.assert_close(found, together.input_values, atol=1e-4, rtol=0)
    else:
        alone = torch.nn.utils.rnn.pad_sequence(expected, batch_first=True)
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ours", [WhisperFeatures(n_mels=128), WaveFeatures(normalize=False, masked=True)])
def test_features_round_trip(ours: WhisperFeatures | WaveFeatures) -> None:
    other = features_from_config(json.loads(json.dumps(ours.config())))
    assert other.config() == ours.config()
    wave = sound(1)
    assert torch.equal(other(wave), ours(wave))
    assert torch.equal(pickle.loads(pickle.dumps(ours))(wave), ours(wave))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature_extractor_type": "Other"}, "feature_extractor_type of WhisperFeatureExtractor, Wav2Vec2Feature"),
        ({"dither": 0.1}, r"preprocessor_config\.json: expected dither = 0\.0, found 0\.1"),
        ({"padding_side": "left"}, "expected padding_side = 'right', found 'left'"),
        ({"pre_emphasis": 0.97}, "found 'pre_emphasis'"),
        ({"n_fft": "many"}, "settings of a feature extractor"),
        ({"n_fft": 10**9}, "settings of a feature extractor, found .*n_fft: expected at least 2 and at most 65536"),
        ({"chunk_length": [30]}, "settings of a feature extractor"),
        ({"padding_value": [0]}, "settings of a feature extractor"),
    ],
)
def test_unsupported_settings(values: dict[str, object], message: str, tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", json.dumps(WhisperFeatures().config() | values))
    bad_data(message, read_features, tmp_path)


@pytest.mark.parametrize("ours", [WhisperFeatures(n_mels=128), WaveFeatures(normalize=False)])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_files_without_type_and_with_keys_of_other_versions(
    name: str, ours: WhisperFeatures | WaveFeatures, tmp_path: Path
) -> None:
    values = ours.config() | {"transformers_version": "4.11.0", "max_length": 480000, "is_fast": False, "notes": None}
    kind = values.pop("feature_extractor_type")
    write(tmp_path / name, json.dumps(values if name.startswith("pre") else {"feature_extractor": values}))
    assert read_features(tmp_path, kind).config() == ours.config()
    bad_data("feature_extractor_type of Whisper", read_features, tmp_path)


@pytest.mark.parametrize("features", [WhisperFeatures(), WaveFeatures()])
def test_invalid_waves(features: WhisperFeatures | WaveFeatures) -> None:
    for wave in (torch.zeros(0), torch.zeros(2, 100), torch.zeros(100, dtype=torch.long)):
        bad_data("wave: expected samples", features, wave)
    broken = torch.zeros(100)
    broken[7] = float("nan")
    bad_data("expected finite samples, found sample 7 is NaN or infinite", features, broken)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer in OpenAI's layout."""
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder)
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("text", TEXTS)
def test_whisper_tokenizer_equals_transformers(text: str, whisper: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(whisper / "tokenizer.json"))
    ours = WhisperText.read(whisper)
    assert isinstance(ours, WhisperText)
    assert [*ours.prefix_ids, *ours.encode(text), ours.eos_id] == theirs(text).input_ids
    first = ours.no_timestamps_id + 1
    assert first == theirs.convert_tokens_to_ids("<|0.00|>")
    ids = [ours.start_id, ours.start_id + 1, first, *ours.encode(" " + text), first + 100, ours.eos_id]
    assert ours.decode(ids) == text.strip()
    assert ours.pad_id == ours.unk_id == ours.eos_id
    assert ours.start_id == theirs.convert_tokens_to_ids("<|startoftranscript|>")


@pytest.mark.parity
def test_whisper_tokenizer_of_older_folders(whisper: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    content = json.loads((whisper / "tokenizer.json").read_text())
    for name, part in (("vocab.json", content["model"]["vocab"]), ("added_tokens.json", {})):
        added = {} if name == "vocab.json" else {token["content"]: token["id"] for token in content["added_tokens"]}
        write(tmp_path / name, json.dumps({token: i for token, i in part.items() if token not in added} | added))
    write(tmp_path / "merges.txt", "\n".join(map(" ".join, content["model"]["merges"])))
    theirs = transformers.WhisperTokenizer.from_pretrained(tmp_path)
    ours, newer = WhisperText.read(tmp_path), WhisperText.read(whisper)
    assert (ours.eos_id, ours.start_id, ours.vocab_size) == (newer.eos_id, newer.start_id, newer.vocab_size)
    for text in TEXTS:
        assert ours.encode(text) == newer.encode(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.fixture
def ctc(tmp_path: Path) -> Path:
    """A folder in the layout of facebook's base model."""
    (tmp_path / "vocab.json").write_text(json.dumps(LETTERS))
    settings = {"do_lower_case": False, "word_delimiter_token": "|", "pad_token": {"content": "<pad>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.parity
@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("text", ["HELLO WORLD", "SHE'D RUN  TO IT", "", " A ", "XYLO 3", "hello"])
def test_ctc_tokenizer_equals_transformers(text: str, lowered: bool, ctc: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (ctc / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowered}))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(ctc / "vocab.json"), do_lower_case=lowered)
    ours = CTCText.read(ctc)
    assert isinstance(ours, CTCText)
    assert ours.encode(text) == theirs(text).input_ids
    assert (ours.pad_id, ours.start_id, ours.eos_id, ours.unk_id) == (0, 1, 2, 3)
    assert ours.vocab_size == len(LETTERS)
    generator = torch.Generator().manual_seed(len(text))
    frames = torch.randint(len(LETTERS), (60,), generator=generator).repeat_interleave(2).tolist()
    collapsed = [token for token, _ in groupby(frames) if token != ours.pad_id]
    expected = theirs.decode(frames, skip_special_tokens=False)
    assert ours.decode(collapsed) == re.sub("<unk>|</s>|<s>", "", expected)


def test_tokenizers_round_trip(ctc: Path, whisper: Path, tmp_path: Path) -> None:
    for kind, folder in ((CTCText, ctc), (WhisperText, whisper)):
        ours = kind.read(folder, max_len=33)
        target = tmp_path / kind.KIND
        target.mkdir()
        ours.save(target)
        for other in (kind.read(target, **ours.config()), pickle.loads(pickle.dumps(ours))):
            assert (other.to_json(), other.config(), other.max_len) == (ours.to_json(), ours.config(), 33)
            assert other.encode("HELLO IT") == ours.encode("HELLO IT")
        words, owners = ours.words("HELLO WORLD")
        assert words == ["HELLO", "WORLD"]
        assert len(owners) == ours.length("HELLO WORLD")
        ids, mask = ours.encode_batch(["HELLO", "IT"], eos=True)
        assert ids[1][mask[1]].tolist() == [*ours.prefix_ids, *ours.encode("IT"), ours.eos_id]


def test_invalid_tokenizers(tmp_path: Path, whisper: Path) -> None:
    bad_data(r"vocab\.json: expected a tokenizer file, found none", CTCText.read, tmp_path / "none")
    for content, message in (
        ("[1]", "vocab.json: expected an object, found list"),
        ("{", "vocab.json: expected JSON"),
        ('{"eng": {"a": 1}}', "of one language"),
        ('{"<pad>": 0, "A": 1}', r"expected the token '\|'"),
        ('{"|": 0, "A": 1}', "expected the token '<pad>'"),
    ):
        bad_data(message, CTCText.read, write(tmp_path / "vocab.json", content).parent)
    bad_data("a tokenizer of kind ctc, found 'other'", CTCText.read, tmp_path, "other")
    bad_data(r"tokenizer\.json: expected a tokenizer file, found none", WhisperText.read, tmp_path)
    text = (whisper / "tokenizer.json").read_text().replace("<|notimestamps|>", "<|other|>")
    write(tmp_path / "tokenizer.json", text)
    bad_data(r"Whisper's token <\|notimestamps\|>", WhisperText.read, tmp_path)


FRONT = WhisperFeatures(n_mels=20, seconds=2)
WINDOW = 200  # frames


def swelling(samples: int) -> Tensor:
    wave = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    wave *= torch.linspace(0.001, 1, samples)  # the loudest part is last
    wave[5_000:9_000] = 0.0  # and defines what counts as silence
    return wave


@pytest.mark.parametrize("samples", [32_001, 32_160, 100_000, 111_111, 96_000])
@pytest.mark.parametrize("block", [160, 7_001, 32_000, 200_000])
def test_stream_windows_equal_full_features(samples: int, block: int) -> None:
    wave = swelling(samples)
    whole = FRONT(wave, whole=True)
    top = WhisperStream(FRONT, wave.split(block)).loudest()
    stream = WhisperStream(FRONT, wave.split(block), top)
    for frame in sorted([0, 0, 37, 200, 201, 390, samples // 160 - 1]):
        begin, frames = stream.read(frame)
        expected = whole[frame : frame + WINDOW]
        assert begin == frame or not len(expected)
        torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)
    assert len(stream.read(samples // 160)[1]) == 0
    assert stream.total == samples


def test_buffer_is_bounded() -> None:
    kept = []

    def blocks() -> Iterator[Tensor]:
        for piece in swelling(3_200_000).split(32_000):
            kept.append(len(stream.wave))
            yield piece

    stream = WhisperStream(FRONT, blocks(), 0.0)
    frame = 0
    while len(stream.read(frame)[1]):
        frame += 150
    assert len(kept) == 100
    assert max(kept) < 3 * 32_000


def test_silence_is_skipped() -> None:
    speech = swelling(32_000)
    quiet = torch.zeros(160_000)
    quiet[::2] = 1e-5
    wave = torch.cat([speech, quiet, speech, quiet])
    stream = WhisperStream(FRONT, wave.split(32_000), 2.0, silence=1e-4)
    assert stream.read(0)[0] == 0
    begin, frames = stream.read(WINDOW + 50)
    assert begin == WINDOW + 50 + 4 * WINDOW, "the first window that reaches the next speech"
    assert len(frames) == WINDOW
    assert len(stream.read(begin + WINDOW + 150)[1]) == 0
    assert stream.total == len(wave)
    refused("the loudest frame is not known", WhisperStream(FRONT, [speech]).read, 0)
