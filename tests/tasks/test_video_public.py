"""Public TimeSformers and VideoMAEs as classifiers, and as the starting point of fine-tuning and pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn import load
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.sources import find_model
from mmattn.tasks.video.predict import VideoPredictor
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import BRIEF, STILL, assert_kept, run, weights

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

LABELS = dict(enumerate(("archery", "bowling", "zumba")))
SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"image_size": 16, "patch_size": 8, "num_frames": 4}
PREPROCESSING = {"do_resize": True, "size": {"shortest_edge": 16}, "do_center_crop": True}
PREPROCESSING |= {"crop_size": {"height": 16, "width": 16}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
DECODER = {"decoder_num_attention_heads": 2, "decoder_hidden_size": 12, "decoder_num_hidden_layers": 1}
DECODER |= {"decoder_intermediate_size": 8}


def write(kind: str, folder: Path) -> Any:
    """Saves a random model with its preprocessing; returns transformers' model."""
    torch.manual_seed(4)
    names = {"id2label": LABELS, "label2id": {name: n for n, name in LABELS.items()}}
    config = transformers.TimesformerConfig(**SIZES, **names)
    if kind.startswith("VideoMAE"):
        config = transformers.VideoMAEConfig(**SIZES, **DECODER, **names)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return model


KINDS = ("TimesformerForVideoClassification", "VideoMAEForVideoClassification")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    root = tmp_path_factory.mktemp("public")
    return {kind: (root / kind, write(kind, root / kind)) for kind in (*KINDS, "VideoMAEForPreTraining")}


@pytest.mark.parametrize("kind", KINDS)
def test_classifiers(kind: str, public: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """Classes, preprocessing and probabilities are those of the public model; it can be saved and explained."""
    folder, theirs = public[kind]
    predictor = load(folder, device="cpu")
    assert isinstance(predictor, VideoPredictor)
    assert predictor.labels == list(LABELS.values())
    video = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
    frames = video[[1, 3, 5, 7], :, 4:20] / 255  # of four equal parts, the middle ones; the middle of the frames
    pixels = torch.from_numpy((frames - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]).float().permute(0, 3, 1, 2)[None]
    with torch.no_grad():
        wanted = theirs(pixels).logits.softmax(-1)[0]
    found = predictor(video, top_k=3)
    assert found.label == LABELS[int(wanted.argmax())]
    assert found.score == pytest.approx(float(wanted.max()), abs=1e-4)
    explanation = predictor.explain(video)
    assert explanation.maps.shape == (4, 2, 2)
    assert explanation.window == pytest.approx((4 / 24, 0, 20 / 24, 1))
    again = load(predictor.save(tmp_path / "saved"), device="cpu")
    assert again(video, top_k=3) == found


@pytest.mark.parametrize("kind", slow_but_first(["VideoMAEForPreTraining", *KINDS]))
def test_fine_tuning_at_other_sizes(kind: str, public: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """For other classes, more frames and larger ones; all weights but those of the head are kept."""
    folder, _ = public[kind]
    options = f"--init_from {folder} --data.num_frames 6 --data.image_size 32 --data.demo_size 8 --data.batch_size 8"
    done = run("fit", tmp_path / "run", f"{options} {STILL}", BRIEF, task="video")
    given = read_parts("video", folder)
    kept = {name: t for name, t in given.state.items() if not name.startswith(("head.", "decoder.", "encoder.norm."))}
    assert assert_kept(kept, weights(done)) > 30
    predictor = load(done / "model", device="cpu")
    assert (predictor.processor.sampling.num_frames, predictor.processor.image.size) == (6, (32, 32))
    assert predictor.processor.image.mean == (0.4, 0.5, 0.6)
    assert len(predictor.labels) == 8


def test_pooling_of_a_public_encoder_may_change(public: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    options = f"--init_from {public[KINDS[0]][0]} --model.pooling mean --data.demo_size 8 --data.batch_size 8"
    done = run("fit", tmp_path / "run", f"{options} {STILL}", BRIEF, task="video")
    assert weights(done).keys() >= {"head.norm.weight", "head.out.weight"}
    lora = f"--init_from {public[KINDS[0]][0]} --model.lora.rank 2 --data.demo_size 8 --data.batch_size 8"
    updated = run("fit", tmp_path / "lora", lora, BRIEF, task="video")
    assert weights(updated).keys() == dict(read_parts("video", public[KINDS[0]][0]).state).keys()


def test_pretraining_goes_on(public: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = public["VideoMAEForPreTraining"]
    options = (
        f"--init_from {folder} --loss.objective masked --loss.mask_ratio 0.5 --data.demo_size 8 --data.batch_size 8"
    )
    done = run("fit", tmp_path / "run", f"{options} {STILL}", BRIEF, task="video")
    given = read_parts("video", folder).state
    assert assert_kept(given, weights(done)) == len(given)
    assert any(name.startswith("decoder.") for name in given)


def test_mistakes(public: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    refused("expected a finished model", load, public["VideoMAEForPreTraining"][0], error=CheckpointError)
    assert list(find_model(public[KINDS[0]][0]).routes()) == ["video"]
    message = "encoder: .* has 'divided', the configuration says 'tubelet'"
    options = f"--init_from {public[KINDS[0]][0]} --model.encoder tubelet"
    refused(message, run, "fit", tmp_path / "run", options, BRIEF, task="video", error=CheckpointError)
    config = json.loads((public[KINDS[0]][0] / "config.json").read_text()) | {"attention_type": "space_only"}
    folder = tmp_path / "other"
    write(KINDS[0], folder)
    (folder / "config.json").write_text(json.dumps(config))
    refused("only 'divided_space_time' is supported", load, folder, error=CheckpointError)
