"""Training and evaluation of speech recognition: CTC and cross-entropy, word and character error rates."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from torch import Tensor

from mmattn.data.batching import BatchPlan, EvalBatchSampler
from mmattn.data.buckets import TokenBatchSampler, estimated_batches
from mmattn.data.errors import UserError
from mmattn.data.options import from_options
from mmattn.data.text.sentences import read_sentences
from mmattn.tasks.asr.alignment import measure_delay
from mmattn.tasks.asr.augment import SpeechAugment
from mmattn.tasks.asr.data import ASRBatch, ASRDataset, normalize_text
from mmattn.tasks.asr.decoding import check_lm, check_ranges, score, write
from mmattn.tasks.asr.model import consistency_loss, ctc_loss
from mmattn.tasks.asr.processor import ASRProcessor, SpeechProcessor
from mmattn.tasks.common import auto
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.chance import Chance
from mmattn.tasks.common.datamodule import Collate, Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import DecodeOptions, LossOptions, TrainingOptions, check_range
from mmattn.tasks.common.seq2seq.model import CorpusMetric, token_loss

BEAMS, CTC_WEIGHT = 5, 0.3  # search defaults
LM_SEARCH = {"lm_weight": 0.5, "lm_bonus": 1.0}  # additional search defaults with a language model
Losses = tuple[Tensor, dict[str, Tensor]]
FIXED = ("sample_rate", "n_mels", "normalize", "tokenizer", "vocab_size")  # data.* that a public model determines


@dataclass
class LateAugment(Collate):
    """A `Collate` that augments from epoch `begin` on."""

    begin: int = 0

    def __post_init__(self) -> None:
        self.later = self.augment
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Enable or disable augmentation; called before each batch."""
        self.augment = self.later if epoch >= self.begin else None


class ASRDataModule(TaskDataModule[ASRDataset, SpeechProcessor]):
    """Recordings and their texts.

    Args:
        sample_rate: Sample rate in Hz; recordings at other rates are resampled.
        num_mels: Bands of the log-mel front end.
        normalize: Features are standardized by the mean and deviation of their "utterance", which removes those of the
            microphone, or by those of the "train"ing set, which keep what distinguishes utterances of one word.
        tokenizer: Characters, or bpe pieces.
        vocab_size: Maximum number of token ids of bpe.
        max_frames: Maximum number of frames in a training batch, padding included; batch_size applies to evaluation
            only.
        max_seconds: Longer training clips are excluded, with a warning; the finished model transcribes longer
            recordings in windows of this length.
        augment: Keywords of SpeechAugment (tasks/asr/augment.py), for training; none: no augmentation.
        lm_order: Length of the longest n-grams, in ids, of a language model of the training texts for shallow fusion
            with CTC beams; 0: no language model.
        lm_text: Files of additional texts, one text per line or other tasks' data (data/text/sentences.py), for a
            second language model, mixed in with the weight that fits the training texts.
        augment_from: First epoch with augmentation: CTC finds its first alignments sooner without.
        ablate: Train and evaluate with silence in place of each recording: a baseline.
        language: Whisper only: spoken language, such as de; none: as in the model's folder.
        task: Whisper only: whether the texts are a transcript or a translation; none: as in the model's folder.
    """

    task = "asr"
    sizes = ("vocab_size", "num_mels")
    train_size = "max_frames"
    least_steps = 2000  # CTC finds its first alignments after many

    def __init__(
        self,
        sample_rate: int = 8000,
        num_mels: int = 40,
        normalize: Literal["utterance", "train"] = "utterance",
        tokenizer: Literal["characters", "bpe"] = "characters",
        vocab_size: int = 200,
        max_frames: int = 6000,
        max_seconds: float = 12.0,
        lm_order: int = 0,
        lm_text: str | list[str] | None = None,
        augment: dict[str, Any] | None = None,
        augment_from: int = 0,
        ablate: Literal["audio"] | None = None,
        language: str | None = None,
        task: Literal["transcribe", "translate"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.max_frames, self.augment_from, self.ablate = max_frames, augment_from, ablate
        self.max_seconds, self.spoken = max_seconds, {"language": language, "task": task}
        self.views = 1  # of each clip in training; the module sets 2 for its consistency loss
        sound = {"sample_rate": sample_rate, "n_mels": num_mels, "normalize": normalize, "max_seconds": max_seconds}
        self.processor_options = sound | {"tokenizer": tokenizer, "vocab_size": vocab_size}
        paths = [lm_text] if isinstance(lm_text, str) else lm_text or []
        self.lm_order, self.lm_text = lm_order, [str(expand(path, "data.lm_text")) for path in paths]
        if not 0 <= lm_order <= 20:
            raise ConfigError(f"data.lm_order: expected 0 to 20, found {lm_order}.")
        if paths and not lm_order:
            raise ConfigError("data.lm_text: the language model of these texts needs data.lm_order, 6 for characters.")
        self.augment = from_options(SpeechAugment, augment, "data.augment")

    def make_dataset(self, source: Any, split: Split) -> ASRDataset:
        return ASRDataset(source, on_error=self.on_error)

    def prepare_dataset(self, dataset: ASRDataset, split: Split) -> ASRDataset:
        if split == "train":
            dataset = dataset.leave_out_longer(min(self.max_seconds, self.processor.max_seconds))
        dataset.preload(self.processor.sample_rate)
        if split == "train" and self.augment is not None:
            self.augment.attach(dataset.samples)
        return dataset

    def collate_options(self, split: Split) -> dict[str, Any]:
        return {"views": self.views if split == "train" else 1}

    def collate_fn(self, split: Split) -> LateAugment:
        return LateAugment(**vars(super().collate_fn(split)), begin=self.augment_from)

    def make_processor(self, train: ASRDataset) -> SpeechProcessor:
        return self._with_lm(super().make_processor(train).with_language(**self.spoken), train)

    def use_processor(self, processor: SpeechProcessor) -> None:
        super().use_processor(processor.with_language(**self.spoken))

    def adapt_processor(self, start: CheckpointParts) -> None:
        train, given = self.dataset("train"), dict(self.processor_options)
        if start.network is not None:
            self._check_public(start)
            given["size"] = start.keywords["vocab_size"]
        try:
            processor = start.processor.with_language(**self.spoken).retarget(train, given)
        except ValueError as error:
            raise error if isinstance(error, UserError) else ConfigError(f"data: {error}") from None
        self.processor = self._with_lm(processor, train)  # over the model's ids

    def _check_public(self, start: CheckpointParts) -> None:
        """Check that the configuration sets no option that a public model determines.

        Raises:
            ConfigError: It does.
        """
        defaults = inspect.signature(ASRDataModule.__init__).parameters
        for name in FIXED:
            key, value = {"n_mels": "num_mels"}.get(name, name), self.processor_options[name]
            if value != defaults[key].default:
                raise ConfigError(
                    f"data.{key}: expected none, since {start.where} determines it; found {value!r}; "
                    "leave the keyword out."
                )
        if self.augment is not None and self.augment.masks and start.network == "wav2vec2":
            raise ConfigError(f"data.augment: expected no masks of frames, since {start.where} takes samples.")

    @functools.cached_property
    def _lm_sentences(self) -> dict[str, list[str]]:
        """The sentences of each file of `lm_text`."""
        return {path: read_sentences(path) for path in self.lm_text}

    def _with_lm(self, processor: SpeechProcessor, train: ASRDataset) -> SpeechProcessor:
        """The processor with a language model, if `lm_order` requests one."""
        if self.lm_order:
            additional = [text for texts in self._lm_sentences.values() for text in texts]
            texts = [sample.text for sample in train.samples if sample.text.strip()]
            try:
                excluded = processor.count(texts, self.lm_order, additional)
            except ValueError as error:
                raise ConfigError(f"data.lm_order: {error}.") from None
            if excluded:
                total = len(texts) + len(additional)
                sys.stderr.write(
                    f"{excluded:,} of {total:,} texts are excluded from the language model: characters without an id.\n"
                )
        return processor

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        found = super().fingerprint()
        for n, (path, texts) in enumerate(self._lm_sentences.items()):
            digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
            found[f"lm_text {n + 1}" if n else "lm_text"] = {"path": path, "samples": len(texts), "sha256": digest}
        return found

    def train_plan(self, dataset: ASRDataset) -> BatchPlan:
        lengths = self.processor.lengths(dataset.samples)
        if self.augment is not None:
            lengths = self.augment.lengths(lengths, self.processor.front.length_seconds)
        try:
            plan = TokenBatchSampler(lengths, self.max_frames, seed=self.seed, **self._ranks())
        except ValueError as error:
            raise ConfigError(f"data.max_frames: {error}") from None
        if self.trainer is not None and self.trainer.is_global_zero:
            print(
                f"{len(dataset):,} clips in {plan.total} batches of at most {self.max_frames} frames, padding "
                f"{plan.padding_stats().share:.1%} before augmentation."
            )
        return plan

    def epoch_batches(self, processes: int) -> int:
        samples = self.dataset("train").samples
        return estimated_batches(self.processor.lengths(auto.some(samples)), len(samples), self.max_frames, processes)

    def eval_plan(self, dataset: ASRDataset) -> BatchPlan:
        lengths = [frames for frames, _ in self.processor.lengths(dataset.samples)]
        return EvalBatchSampler(range(len(dataset)), self.batch_size, lengths=lengths, **self._ranks())


@dataclass
class ASRLossOptions(LossOptions):
    """The loss of speech recognition.

    Args:
        label_smoothing: Probability mass that the targets spread over all tokens.
        ctc_weight: Weight w of CTC; 1 for models without a decoder, 0 for models without CTC.
        consistency: Weight, relative to CTC, of the agreement of CTC on two views of each recording, which differ in
            masks and dropout (`consistency_loss`); an epoch then takes twice as long. 0: one view.
    """

    ctc_weight: float = 0.3
    consistency: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.ctc_weight", self.ctc_weight, 0, 1)
        check_range("loss.consistency", self.consistency, 0)


@dataclass
class ASRDecodeOptions(DecodeOptions):
    """The search for transcripts. All but `val_beams` are saved with the finished model.

    Args:
        num_beams: Number of beams of `validate` and `test`; none: 5, or the value saved with the evaluated or public
            model.
        ctc_weight: w of joint decoding, for models with CTC and a decoder: 0 is attention alone, 1 is CTC alone; none:
            0.3, or likewise.
        lm_weight: Weight of the language model (`data.lm_order`) in shallow fusion, relative to CTC; 0: no language
            model; none: 0.5, or likewise.
        lm_bonus: Score added for each token, since every token makes a text less probable; none: 1, or likewise.
        val_beams: Number of beams of the validation within fit; 1: greedy.
    """

    num_beams: int | None = None
    ctc_weight: float | None = None
    lm_weight: float | None = None
    lm_bonus: float | None = None
    val_beams: int = 1

    def __post_init__(self) -> None:
        check_ranges("decode.", **vars(self))


@dataclass
class ASRTrainingOptions(TrainingOptions):
    """Training options that Lightning's Trainer does not have.

    Args:
        early_stopping: Stop after this number of validations without a better metric; 0: never; none: never, unless
            max_epochs is auto.
        compile: Run the model through `torch.compile`.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        save_every_n_steps: Write `last.ckpt` after every n optimizer steps, in addition to the end of each epoch.
        monitor: The error rate that selects the best checkpoint, of words (wer) or characters (cer).
    """

    monitor: Literal["wer", "cer"] = "wer"


class ASRModule(TaskModule[ASRDataModule]):
    """``(1 - w) cross-entropy + w CTC`` (Watanabe et al. 2017, eq. 10); error rates by greedy, beam or joint search.

    Args:
        model: Keywords of the model.
        options: The sections that TaskModule takes.
        named: Keyword arguments of TaskModule.
    """

    task = "asr"
    mode = "min"
    Loss, Decode, Training = ASRLossOptions, ASRDecodeOptions, ASRTrainingOptions
    model: Any

    def __init__(self, model: dict[str, Any], *options: Any, **named: Any) -> None:
        super().__init__(model, *options, **named)
        self.ctc_weight = 1.0 if model.get("decoder") == "none" else self.loss.ctc_weight
        given = {name: value for name, value in vars(self.decode).items() if name != "val_beams"}
        self.search = {name: value for name, value in given.items() if value is not None}

    @property
    def monitor(self) -> str:
        return f"val/{self.training_options.monitor}"

    @property
    def measured_by(self) -> str:  # type: ignore[override]
        """The search that validates within fit, if it differs from that of the finished model."""
        search = "greedy" if self.decode.val_beams == 1 else f"{self.decode.val_beams} beams"
        return "" if self.decode.val_beams == self._search(self.data.processor).get("num_beams", 1) else f", {search}"

    def setup(self, stage: str) -> None:
        self.check_processor(self.data.processor)
        if self.loss.consistency and stage == "fit":
            augment, fixed = self.data.augment, self.network is None and self.keywords.get("dropout") == 0.0
            if fixed and not (augment is not None and augment.masks):
                raise ConfigError(
                    "loss.consistency: expected views that differ, by data.augment.time_masks or freq_masks, or by "
                    "model.dropout; found none of them."
                )
            self.data.views = 2

    def check_processor(self, processor: SpeechProcessor) -> None:
        own, search = self.network is None, self._search(processor)
        if self.loss.consistency and (self.ctc_weight == 0.0 if own else self.network == "whisper"):
            raise ConfigError("loss.consistency: expected 0, since this model is not trained with CTC.")
        if not own and "ctc_weight" in self.search:
            raise ConfigError("decode.ctc_weight: expected none, since a public model has CTC or a decoder alone.")
        attends = self.keywords.get("decoder") != "none" if own else self.network == "whisper"
        fresh = not processor.search  # a language model in it was then explicitly requested
        check_lm(search, search if fresh else self.search, processor, attends)

    def complete_processor(self, processor: SpeechProcessor, metrics: Mapping[str, float]) -> SpeechProcessor:
        processor.search = self._search(processor)
        if isinstance(processor, ASRProcessor):
            processor.delay = measure_delay(self.model, processor, self.data.dataset("train").samples)
        return processor

    def _search(self, processor: SpeechProcessor) -> dict[str, Any]:
        """Search options: the given ones, else those saved with the evaluated model, else the defaults."""
        has = processor.lm is not None
        defaults: dict[str, Any] = {"num_beams": BEAMS} if has else {}
        if self.network is None:  # a public model has its own defaults
            defaults = {"num_beams": BEAMS, "ctc_weight": CTC_WEIGHT}
        return defaults | (LM_SEARCH if has else {}) | processor.search | self.search

    def losses(self, batch: ASRBatch, smoothing: float = 0.0, consistency: float = 0.0) -> Losses:
        """The weighted loss, and its parts by name."""
        output = self.model(batch.features, batch.feature_mask, batch.target_ids)
        ctc = 1.0 if output.logits is None else 0.0 if output.ctc_logits is None else self.ctc_weight
        weights, parts = {"ctc": ctc, "consistency": ctc * consistency, "attention": 1 - ctc}, {}
        if output.ctc_logits is not None:
            blank = self.data.processor.tokenizer.pad_id
            parts["ctc"] = ctc_loss(output.ctc_logits, output.frame_mask, batch.labels, batch.label_mask, blank)
            if consistency:
                parts["consistency"] = consistency_loss(output.ctc_logits, output.frame_mask, batch.label_mask)
        if output.logits is not None:
            parts["attention"] = token_loss(output.logits, batch.labels, batch.label_mask, smoothing)
        return sum(weights[name] * value for name, value in parts.items()), parts  # type: ignore[return-value]

    def training_loss(self, batch: ASRBatch) -> Losses:
        return self.losses(batch, self.loss.label_smoothing, self.loss.consistency)

    def make_metric(self) -> CorpusMetric:
        return CorpusMetric(score)

    def chance(self) -> Chance:
        return Chance(1.0, "an empty transcript")

    def notes(self) -> dict[str, str]:  # text normalization and the package that counts edits
        return {"normalizer": (normalize_text.__doc__ or "").split("\n")[0], "wer_by": f"jiwer {version('jiwer')}"}

    def update_metric(self, metric: Any, batch: ASRBatch) -> None:
        loss, _ = self.losses(batch)
        tokens = float(batch.label_mask.sum())
        metric.add("loss", float(loss) * tokens, tokens)
        search = self._search(self.data.processor)
        if self.trainer.state.fn == "fit":
            search["num_beams"] = self.decode.val_beams
        hypotheses = write(self.model, batch.features, batch.feature_mask, self.data.processor, **search)
        metric.update(batch.ids, [clip.text for clip in hypotheses], [[reference] for reference in batch.references])
