"""`TaskCLI`: LightningCLI with one parser, flat model keywords and a run directory."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mmattn.data.errors import UserError
from mmattn.tasks.common import auto, report, rundir
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.allocator import keep_freed_memory
from mmattn.tasks.common.callbacks import BEST, LAST, check_resumable, read_checkpoint
from mmattn.tasks.common.datamodule import HELD_OUT
from mmattn.tasks.common.errors import CheckpointError, ConfigError, missing_package
from mmattn.tasks.common.interrupts import Interrupts
from mmattn.tasks.common.options import plain
from mmattn.tasks.common.task import Task
from mmattn.tasks.common.trainer import (
    FREE_OPTIONS,
    Parser,
    add_trainer_arguments,
    checkpoint_bytes,
    fit_callbacks,
    make_trainer,
    set_lengths,
)
from mmattn.tasks.common.yaml_limits import load_yaml, recorded_options

SECTIONS = {"model", "optim", "loss", "decode", "training", "init_from"}  # parameters that all modules have
# Settings that a resumed run may change: they do not alter the results.
FREE_SETTINGS = {"data.num_workers", "data.on_error", *(f"trainer.{name}" for name in FREE_OPTIONS)}


class TaskCLI(LightningCLI):
    """LightningCLI for one command of one task."""

    command: str
    argv: Sequence[str]
    whole = False  # whether `fit` trains on the samples that are held out for validation, too

    def __init__(
        self, task: Task, command: str, argv: Sequence[str], program: str, sources: Mapping[str, Any] | None = None
    ) -> None:
        self.entry, self.task, self.command, self.argv, self.program = task, task.name, command, argv, program
        self.sources, self.is_python = sources or {}, sources is not None  # samples in memory, from `mmattn.fit`
        self.module_type, self.data_type = task.resolve("module"), task.resolve("datamodule")
        self.model_type = task.resolve("model")
        super().__init__(
            self.module_type,
            self.data_type,
            save_config_callback=None,
            trainer_defaults={
                "default_root_dir": f"runs/{task.name}",
                "gradient_clip_val": 1.0,
                "num_sanity_val_steps": 0,
                "check_val_every_n_epoch": None,  # each, or less often where `auto` makes very short epochs
                "use_distributed_sampler": False,  # the batch samplers distribute batches among processes
                "enable_model_summary": False,
                "log_every_n_steps": 20,
            },
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[command, *argv],
        )

    # Parsing ----------------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the requested subcommand; building each of the other parsers would take a second."""
        skip = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"}
        return {self.command: skip if self.command == "fit" else skip | {"ckpt_path", "verbose"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_trainer_arguments(parser)
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        options = {"as_group": False, "instantiate": False, "fail_untyped": False}
        parser.add_class_arguments(self.module_type.Training, "trainer", **options)
        parser.add_class_arguments(self.model_type, "model", skip=set(self.data_type.sizes), **options)
        parser.add_class_arguments(self.module_type, "model", skip=SECTIONS, **options)
        for section, kind in self._sections().items():
            parser.add_class_arguments(kind, section, instantiate=False, fail_untyped=False)
        parser.add_class_arguments(self.data_type, "data", skip={"seed"}, instantiate=False, fail_untyped=False)

    def _sections(self) -> dict[str, type[Any]]:
        """Classes of the option sections."""
        module = self.module_type
        return {"optim": module.Optim, "loss": module.Loss, "decode": module.Decode}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self.command == "fit":
            parser.add_argument(
                "--init_from",
                type=str | dict[str, str] | None,
                default=None,
                help="Fine-tune this model: public weights by name, timm/NAME, hf:owner/name or DIR.",
            )
            parser.add_argument("--overwrite", type=bool, default=False, help="Empty an existing run directory.")
            parser.add_argument("--find_lr", type=bool, default=False, help="Search for a learning rate first.")
        else:
            parser.add_argument(
                "--checkpoint",
                type=str | None,
                default=None,
                help="Model folder or hf:owner/name; default: model/ of the run.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, ConfigError, UnicodeDecodeError) as error:
            own: Any = self._subcommand_parsers[self.command]
            raise ConfigError(self._blame(own.explain(str(error)))) from None

    def _blame(self, message: str) -> str:
        """Name the configuration file that is not valid YAML, which the parser's message does not."""
        for word, value in zip(self.argv, self.argv[1:], strict=False):
            if word in ("--config", "-c") and Path(value).is_file():
                try:
                    load_yaml(Path(value).read_text(encoding="utf-8"))
                except (yaml.YAMLError, UnicodeDecodeError) as error:
                    return f"{value}: expected YAML, found invalid syntax: {error}"
        return message

    def _parse_ckpt_path(self) -> None:
        """Disabled: the checkpoint's hyper-parameters would override flags silently; settings are compared instead."""

    # Building ---------------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        self.config_init = self.config
        config = self.config[self.command]
        for name in ("model", "data", *self._sections()):
            if name in config and config[name] is None:
                raise ConfigError(f"{name}: expected options, found an empty section; remove it.")
        self.seed = config.seed_everything if isinstance(config.seed_everything, int) else 0
        data = config.data.as_dict()
        self.root = Path(config.trainer.default_root_dir)
        if self.command == "fit" and data["train"] is None:
            raise ConfigError(
                f"data.train: expected the path of your training data, or demo for the built-in data; found none. "
                f"`{self.program} fit --config configs/{self.task}.yaml` trains on the built-in data."
            )
        limits = config.trainer
        if limits.max_epochs == auto.AUTO and limits.max_time is None and limits.max_steps < 0:
            limits.max_time = auto.TIME
        self.datamodule = self.data_type(**data, seed=self.seed)
        self.datamodule.sources, self.datamodule.is_refit = self.sources, self.whole
        keywords = config.model.as_dict()
        accepted = inspect.signature(self.model_type).parameters
        model = {key: value for key, value in keywords.items() if key in accepted}
        others: dict[str, Any] = {key: value for key, value in keywords.items() if key not in accepted}
        options = {name: config[name].as_dict() if name in config else {} for name in self._sections()}
        own = [field.name for field in dataclasses.fields(self.module_type.Training)]
        options["training"] = {name: config.trainer[name] for name in own}
        self.datamodule.require_labels = self.module_type.needs_labels(options["loss"])
        init_from = config.init_from if self.command == "fit" else None
        start: CheckpointParts | None = None
        if self.command != "fit":
            start = self.datamodule.read_model(config.checkpoint or self.root / "model").finished()
            self.checkpoint = start.where
            folder = Path(start.where).parent
            if str(self.root) == self.trainer_defaults["default_root_dir"] and rundir.is_run(folder):
                self.root = folder  # metrics are written into the run that produced the model
            self._check_split(start)
            for key, value, found in self._differing(model, start):
                raise ConfigError(
                    f"model.{key}: the checkpoint {start.where} has {found!r}, found {value!r}; "
                    f"a trained model is evaluated with its own keywords: leave the option out."
                )
            self.datamodule.use_processor(start.processor)
        elif init_from is not None:
            try:
                start = self.datamodule.read_model(init_from)
            except CheckpointError as error:
                raise CheckpointError(f"init_from: {error}") from None
            start = start.changed({key: value for key, value, _ in self._differing(model, start)})
            self.datamodule.adapt_processor(start)
        model = self.module_type.check_model(model if start is None else start.keywords)
        self.model = self.module_type(model, **options, **others, init_from=init_from)
        self.model.seed, self.model.start = self.seed, start
        self.model.connect(self.datamodule)
        groups = {"model": {**model, **others}, "data": data, "trainer": config.trainer.as_dict()}
        self.model.settings = {
            f"{group}.{key}": value
            for group, values in {**options, "training": {}, **groups}.items()
            for key, value in plain(values).items()
            if f"{group}.{key}" not in FREE_SETTINGS
        } | {"seed_everything": self.seed, "init_from": init_from}
        self.trainer = self.instantiate_trainer()

    def _check_split(self, shipped: CheckpointParts) -> None:
        split = {"validate": "val", "test": "test"}[self.command]
        if shipped.own_data and self.datamodule.paths[split] is None:
            run = rundir.read_json(Path(self.checkpoint).parent / "run.json")
            known = run.get("data", {}).get(split, {})
            path = known.get("path")
            if isinstance(path, str) and path.startswith(HELD_OUT):  # else a file for each of several tasks
                if "refit" in run:
                    raise ConfigError(
                        f"{self.checkpoint} was trained on all {run['refit']['samples']} samples after the validation, "
                        f"whose figures are in {self.root / rundir.METRICS}; give --data.{split} PATH."
                    )
                self.datamodule.seed = run["seed"]  # of the draw
                if self.datamodule.is_divided and self.datamodule.dataset("val").fingerprint() == known["sha256"]:
                    return
                raise ConfigError(
                    f"{self.checkpoint} was validated on data {path}: --data.train with this path repeats the split, "
                    f"while the data are the same; or give --data.val PATH."
                )
            raise ConfigError(
                f"{self.checkpoint} was trained on your own data and cannot be evaluated on the built-in data; "
                f"give --data.{split} {path or 'PATH'}."
            )

    def _differing(self, given: dict[str, Any], start: CheckpointParts) -> list[tuple[str, Any, Any]]:
        """Given keywords that are neither the defaults nor the trained model's, with the trained model's values."""
        defaults, known = inspect.signature(self.model_type).parameters, start.known
        return [
            (key, value, known.get(key))
            for key, value in given.items()
            if plain(value) not in (plain(defaults[key].default), plain(known.get(key)))
        ]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return self._make_trainer()
        except UserError:
            raise
        except (ImportError, MisconfigurationException, TypeError, ValueError) as error:
            raise ConfigError(f"trainer: {missing_package(error)}") from error

    def _make_trainer(self) -> Trainer:
        config = self.parser.instantiate(self.config)[self.command].trainer.as_dict()
        own = {field.name for field in dataclasses.fields(self.module_type.Training)}
        config = {name: value for name, value in config.items() if name not in own}
        if self.command != "fit":
            return make_trainer(config, [], self.root, self.task, fit=False)
        self.is_auto = config["max_epochs"] == auto.AUTO and config["max_steps"] < 0
        self.last, callbacks = fit_callbacks(self.model, self.root, config["max_epochs"] == auto.AUTO)
        resume = self._command() if "--ckpt_path" in self.argv else f"{self._command()} --ckpt_path last"
        if self.is_python:
            resume = 'fit(..., ckpt_path="last")'
        self.interrupts = Interrupts(self.last, resume)
        return make_trainer(config, [*callbacks, self.interrupts], self.root, self.task, fit=True)

    # Running ----------------------------------------------------------------------------------------------------------

    def fit(self, ckpt_path: str | None = None, **_: Any) -> None:
        """Train, then write the best model to `model/` and the metrics to `metrics.json`."""
        for split in ("train", "val"):
            self.datamodule.dataset(split)  # bad data end the run before anything is written
        resume = self._resume_path(ckpt_path)
        is_auto = any(self.config["fit"][key] == auto.AUTO for key in auto.KEYS)
        if resume is None and self.model.start is None and (self.trainer.is_global_zero or is_auto):
            self.datamodule.processor = self.datamodule.make_processor(self.datamodule.dataset("train"))
        self._resolve_auto({} if ckpt_path is None else recorded_options(self.root / rundir.CONFIG))
        if resume is None and self.trainer.is_global_zero:  # as does a model that cannot be built
            self.model.build(self.datamodule.model_sizes(), self.datamodule.processor)
            self.model.check_processor(self.datamodule.processor)
            rundir.check_space(self.root, 3 * checkpoint_bytes(self.model))  # the last, the best, and one to replace it
        with (
            rundir.locked(self.root) if self.trainer.is_global_zero else nullcontext(False) as is_held,
            self.interrupts.installed(),
        ):
            self._train(resume, ckpt_path is not None, is_held)

    def _resolve_auto(self, recorded: Mapping[str, Any]) -> None:
        config = self.config["fit"]
        self.said = [auto.resolve(config, self.datamodule, self.trainer.world_size, recorded)]
        self.said += [self.datamodule.division] if self.datamodule.is_divided else []
        lengths = ("max_epochs", "check_val_every_n_epoch", "early_stopping")
        epochs, interval, patience = (config.trainer[name] for name in lengths)
        set_lengths(self.trainer, epochs, interval, patience or 0)
        self.model.optim.warmup_steps = config.optim.warmup_steps
        keys = {key for key in (*auto.KEYS, *(f"trainer.{name}" for name in lengths)) if key not in FREE_SETTINGS}
        self.model.settings |= {key: config[key] for key in keys}

    def _train(self, resume: Path | None, resumed: bool, is_held: bool) -> None:
        config = self.config["fit"]
        if self.trainer.is_global_zero:
            rundir.prepare(self.root, resume=resumed, overwrite=config.overwrite, is_held=is_held)
            dump = self._subcommand_parsers["fit"].dump(config, skip_unset=False)
            rundir.record_start(self.root, self.task, self.seed, self._command(), dump, resumed=resumed)
            print(*filter(None, self.said), sep="\n", end="\n" if any(self.said) else "", flush=True)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if config.find_lr and resume is None:
            self._find_lr()
        self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=resume, weights_only=True)
        if self.trainer.is_global_zero:
            self._finish()

    def _finish(self) -> None:
        """Write what the run ships, and say so."""
        raise NotImplementedError

    def _command(self) -> str:
        return f"{self.program} {self.command} {' '.join(self.argv)}".strip()

    def _resume_path(self, ckpt_path: str | None) -> Path | None:
        if ckpt_path is None:
            return None
        path = self.root / {"last": LAST, "best": BEST}.get(ckpt_path, ckpt_path)
        if ckpt_path not in ("last", "best"):
            path = Path(ckpt_path)
        if ckpt_path == "last" and not path.exists() and rundir.is_run(self.root):
            print(f"{path} was not written before the run ended; training starts from the beginning.")
            return None
        check_resumable(read_checkpoint(path), path)  # a damaged checkpoint is refused before anything is written
        return path

    def _find_lr(self) -> None:
        finder = Tuner(self.trainer).lr_find(self.model, datamodule=self.datamodule)
        suggestion = finder.suggestion() if finder else None
        if suggestion is None:
            raise ConfigError("--find_lr: expected a falling loss, found none; set --optim.lr by hand.")
        self.model.lr = suggestion
        print(f"learning rate found: {suggestion:.2e}")

    def validate(self, **_: Any) -> None:
        self._measure("validate", "validation")

    def test(self, **_: Any) -> None:
        self._measure("test", "test")

    def _measure(self, command: str, split: str) -> None:
        rundir.writable(self.root)
        results = getattr(self.trainer, command)(self.model, datamodule=self.datamodule, verbose=False)[0]
        if self.trainer.is_global_zero:
            figures: dict[str, Any] = {name.split("/", 1)[1]: value for name, value in results.items()}
            data = self.datamodule.fingerprint()[{"validate": "val", "test": "test"}[command]]
            title = f"{self.checkpoint} on {data['path']} ({command}, {data['samples']} samples)"
            rundir.print_metrics(title, figures)
            figures |= self.model.notes()
            figures |= {"checkpoint": str(self.checkpoint), "data": self.datamodule.fingerprint()}
            rundir.record_metrics(self.root, split, figures)
            confusion = self.model.confusion.get({"validate": "val", "test": "test"}[command])
            report.write(self.root, self.trainer, split, self.checkpoint, figures, confusion)
            print(f"Written to {self.root / 'metrics.json'}.")
