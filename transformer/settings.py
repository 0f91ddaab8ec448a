"""The settings of a step. Each flag's value comes from the first source that has one: command line, script header,
sample, task, flag table. `settings_for` is a pure function with an immutable result."""

import argparse
import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from transformer import downloads, flags
from transformer.files import UserError, without_secrets
from transformer.flags import EVALUATION, EVALUATIONS, FINETUNE, INTERMEDIATE, PREDICTION, TASK, flags_of, model


def read_command_line(doc, step, argv=None):
    """{flag: value} as given on a script's command line. `doc`: the script's docstring, for --help."""
    # SUPPRESS leaves out flags that were not given, so that other sources can set them.
    parser = argparse.ArgumentParser(description=doc, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for (heading, steps), rows in flags.FLAGS.items():
        group = parser.add_argument_group(heading)
        for name, flag in rows.items() if step in steps else ():
            options = {bool: {"action": "store_true"}, list: {"nargs": "+"}}.get(flag.type, {"type": flag.type})
            options |= {"choices": flag.choices} if flag.choices else {}
            names = [f"--{each}" for each in (name, flag.alias) if each]
            group.add_argument(*names, dest=name, help=flag.help + default_text(flag, step), **options)
    return vars(parser.parse_args(argv))


def default_text(flag, step):
    """The default as --help shows it: ` (5e-05; with --do_finetune 3e-05)`."""
    if flag.type is bool or flag.help.endswith(")"):
        return ""
    values = {each: flag.value_at(each) for each in (TASK[:-1] if step in TASK else [step])}
    first = next(iter(values.values()))
    text = "off" if first is None else " ".join(first) if isinstance(first, list) else str(first)
    text += ", or the task's own" if step in flag.by_task else ""
    others = {flags.SWITCHES[each]: value for each, value in values.items() if value not in (None, first)}
    return f" ({text}{''.join(f'; with --{switch} {value}' for switch, value in others.items())})"


DEFAULTS = {name: flag.value_at(INTERMEDIATE) for name, flag in flags_of(INTERMEDIATE).items()}


@dataclass(frozen=True)
class Schedule:
    """How long and at which rate a training runs."""

    num_train_epochs: float = DEFAULTS["num_train_epochs"]
    max_steps: int | None = DEFAULTS["max_steps"]
    learning_rate: float = DEFAULTS["learning_rate"]
    weight_decay: float = DEFAULTS["weight_decay"]
    warmup_proportion: float = DEFAULTS["warmup_proportion"]
    eval_step: int = DEFAULTS["eval_step"]
    seed: int = DEFAULTS["seed"]


@dataclass(frozen=True)
class Batching:
    """Batch sizes, and how a batch is computed."""

    train_batch_size: int = DEFAULTS["train_batch_size"]
    eval_batch_size: int = DEFAULTS["eval_batch_size"]
    gradient_accumulation_steps: int = DEFAULTS["gradient_accumulation_steps"]
    pad_to_max_length: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Matching:
    """Which teacher layers teach, with which losses, and the weight of each kind of loss."""

    layer_map: str = DEFAULTS["layer_map"]
    attention_loss: str = DEFAULTS["attention_loss"]
    attention_weight: float = DEFAULTS["attention_weight"]
    hidden_weight: float = DEFAULTS["hidden_weight"]
    pad_to_max_length: bool = False  # losses then average over padding too, as in the reference


class Lengths(NamedTuple):
    """How many tokens a sequence may have, and how a longer text becomes several of them."""

    max_seq_length: int
    doc_stride: int = 128  # from the start of a window over a long text to that of the next one
    max_query_length: int = 64  # of a question


@dataclass(frozen=True)
class Reading:
    """How a task's files become sequences."""

    data_dir: str
    max_seq_length: int = DEFAULTS["max_seq_length"]
    limit: int | None = None  # rows of each file
    do_lower_case: bool | None = None
    aug_train: bool | None = None
    unlabelled: list | None = None  # files; for the two steps of distillation only
    pad_to_max_length: bool | None = None
    doc_stride: int | None = None  # None = those of `Lengths`
    max_query_length: int | None = None

    @property
    def lengths(self):
        """The lengths alone."""
        windows = {"doc_stride": self.doc_stride, "max_query_length": self.max_query_length}
        return Lengths(self.max_seq_length, **{name: value for name, value in windows.items() if value})


@dataclass(frozen=True)
class Provenance:
    """What an output's record holds, and how the output is handled."""

    script: str
    settings: dict
    counted: frozenset  # the flags that affect the result, given or not
    sources: list  # (flag, path or name) of each input model and corpus file
    overwrite: bool
    data_url: str | None
    command_of: object = None  # `Settings.command_of` of the run


NO_TASK = ("", {})


class Settings(Mapping):
    """The immutable settings of one step: {flag: value}, with the flags also as attributes. `origins`: {flag: source},
    for flags without their default value."""

    def __init__(self, step, values, origins, given, header, task):
        self.__dict__.update(step=step, origins=MappingProxyType(origins), _values=MappingProxyType(values))
        self.__dict__.update(_given=given, _header=header, _task=task)

    def __getitem__(self, name):
        return self._values[name]

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"{name} is no setting of the {self.step} step")
        return self._values[name]

    def __setattr__(self, name, value):
        raise AttributeError(f"{name}: settings never change")

    def asked_for(self, name):
        """Whether the user gave a flag its value."""
        return name in self._given or name in self._header

    def place_beside(self, student):
        """The output folder; without --output_dir, results on a finished student of one's own lie in its folder."""
        beside = self.step == EVALUATION and not self.asked_for("output_dir") and Path(self.student_model).is_dir()
        return Path(student if beside else self.output_dir)

    def for_step(self, step, recorded=None, **changes):
        """The settings of another step, or of this one with changes. Given values carry over as the table says.
        `recorded`: {flag: value} of an earlier run, for flags that were not given; changes: values that win."""
        heirs = {name for name, flag in flags_of(step).items() if step == self.step or step in flag.heirs}
        given, header = ({name: layer[name] for name in layer.keys() & heirs} for layer in (self._given, self._header))
        return settings_for(step, given, header, self._task, recorded, changes)

    def part(self, kind):
        """An instance of a dataclass whose fields are flags: Schedule, Batching, Matching, Reading or a stage's own."""
        return kind(**{name: self[name] for name in kind.__dataclass_fields__ if name in self})

    @property
    def parts(self):
        """The arguments of a `TaskRun`: (Reading, Schedule, Batching, Provenance)."""
        return (*map(self.part, (Reading, Schedule, Batching)), self.provenance)

    def each_seed(self):
        """Yield these settings, or with --seeds one variant per seed, each with its own output folder."""
        if not self.seeds:
            yield self
            return
        folder = Path(self.student_model)
        students = {seed: folder / f"seed_{seed}" for seed in map(int, self.seeds.split(","))}  # of the previous step
        lost = [path for path in students.values() if not path.is_dir()]
        whole = any((folder / name).is_file() for name in downloads.MODEL_PARTS["weights"])
        if lost and not whole and any(folder.glob("seed_*")):
            raise UserError(f"{lost[0]}: no such folder; the step before this one makes it with --seeds {self.seeds}")
        for seed, student in students.items():
            logging.info("seed %d", seed)
            folders = {"output_dir": str(Path(self.output_dir) / f"seed_{seed}")}
            folders |= {"student_model": str(student)} if student.is_dir() else {}
            yield self.for_step(self.step, seed=seed, seeds=None, **folders)

    @property
    def processes(self):
        """The arguments of `processes.start` for a training."""
        return self.seed, self.precision, self.no_cuda, self.local_rank, self.teacher_precision

    @property
    def provenance(self):
        """The `Provenance` of this run's outputs."""
        rows = flags_of(self.step)
        counted = frozenset(name for name, flag in rows.items() if flag.result) | {"step"}
        given = {name: value for name, value in self.items() if value is not None and value is not False}
        kept = {name: value for name, value in given.items() if name in counted}
        kept |= {name: without_secrets(value) for name, value in kept.items() if isinstance(value, str)}
        if self.step in TASK:
            kept["step"] = self.step
        sources = [(name, value) for name, value in given.items() if rows[name].type is model]
        sources += [("train_corpus", file) for file in given.get("train_corpus", ())]
        script = self.step if self.step in (FINETUNE, flags.BASELINE) else flags.SCRIPTS[self.step].removesuffix(".py")
        overwrite = bool(self.overwrite_output)
        return Provenance(script, kept, counted, sources, overwrite, self.data_url, self.command_of)

    def next_command(self, **changes):
        """The next step's command, ready to paste, without flags that already have the right default. Another task than
        the sample's goes on with its own student, for which the general student is made first where there is none."""
        if self.step not in flags.NEXT:
            return None
        step, handed_on = flags.NEXT[self.step]
        if self.step not in flags.NEXT_OF_TASK or self._task[0] in ("", flags.SAMPLE_TASK):
            return self._command(step, handed_on, **changes)
        teacher = "pretrained_bert_model" if self.step == flags.AUGMENTATION else "teacher_model"
        if self.step == flags.AUGMENTATION:
            changes |= {"aug_train": True, "data_dir": str(Path(self.glue_dir) / self._task[0])}
        else:
            changes |= {"aug_train": self.aug_train or any(Path(self.data_dir).glob("train_aug.[tcj]*")) or None}
            changes |= {"teacher_model": self.output_dir} if self.output_dir else {}
        of_task = self._command(INTERMEDIATE, flags.NEXT_OF_TASK[self.step], **changes)
        general = Path(flags_of(INTERMEDIATE)["student_model"].value_at(INTERMEDIATE))
        if any((general / name).is_file() for name in downloads.WEIGHTS):
            return of_task
        first = (
            self._command(flags.PREGENERATION, {"bert_model": teacher}),
            self._command(flags.GENERAL, {"teacher_model": teacher}),
        )
        return " && ".join([*first, of_task])

    def _command(self, step, handed_on, **changes):
        """The command of another step. `handed_on`: {its flag: the flag of this step that provides the value}."""
        values = {name: self.get(own) for name, own in handed_on.items()} | changes
        defaults = settings_for(step, {"sample": self.sample, "task_name": self._task[0] or None}, task=self._task)
        values |= beside_student(step, values.get("student_model"), defaults.get("output_dir"))
        defaults = {**defaults, "task_name": flags.SAMPLE_TASK}
        differing = {name: value for name, value in values.items() if str(value) != str(defaults[name])}
        return command(step, differing | ({"sample": True} if self.sample else {}))

    def command_of(self, step, **changes):
        """The command line, ready to paste, of another of task_distill.py's steps with this run's flags, or of
        augmentation for this run's task."""
        if step == flags.AUGMENTATION:
            return self._command(step, flags.AUGMENT_AGAIN, glue_dir=str(Path(self.data_dir).parent), **changes)
        if step == FINETUNE:  # whose output is no student
            heirs = {name for name, flag in flags_of(step).items() if FINETUNE in flag.heirs}
            return command(step, {name: self._given[name] for name in self._given if name in heirs} | changes)
        # The flags that belong to certain steps.
        modes = {*flags.SWITCHES.values(), *EVALUATIONS, "baseline", "teacher_states", "overwrite_output"}
        layers = ({name: layer[name] for name in layer if name not in modes} for layer in (self._given, self._header))
        given, header = layers
        meant = settings_for(step, given, header, self._task)
        return command(step, given | beside_student(step, meant.student_model, meant.output_dir) | changes)

    def log(self):
        """Log every value that is not the default, with its source."""
        for name, origin in sorted(self.origins.items(), key=lambda item: (item[1], item[0])):
            value = " ".join(self[name]) if isinstance(self[name], list) else str(self[name])
            logging.info("  %-28s %-36s %s", name, without_secrets(value), origin)


def settings_for(step, given, header=None, task=NO_TASK, recorded=None, changes=None):
    """The `Settings` of a step.

    Args: given: {flag: value} from the command line; header: the script's HEADER; task: (name, {flag: value}) from a
    task's row; recorded, changes: see `Settings.for_step`. Raises UserError for unknown flags and bad values.
    """
    changes, rows = changes or {}, flags_of(step)
    header = read_header(header or {}, rows)
    recorded = {name: value for name, value in (recorded or {}).items() if name in rows}
    layers = {
        "command line": given,
        "script header": header,
        "earlier run": read_header(recorded, rows, "run.json of an earlier run"),
        "sample": sample_of(step, {**header, **given}),
        task[0]: {
            name: value.get(step) if isinstance(value, dict) else value
            for name, value in task[1].items()
            if name in rows and step in rows[name].by_task
        },
        "": {name: flag.value_at(step) for name, flag in rows.items()},
    }
    values, origins = {}, {}
    for name in rows:
        found = ((origin, layer.get(name)) for origin, layer in layers.items())
        origin, value = next((each for each in found if each[1] is not None), ("", None))
        if rows[name].type in (flags.path, model) and value is not None:
            value = os.path.expanduser(value)  # Path's own raises RuntimeError for ~nobody
        values[name] = [*map(os.path.expanduser, value)] if isinstance(value, list) else value
        if origin and name not in changes:
            origins[name] = origin
    values |= changes
    if task[0]:
        values["task_name"] = task[0]  # in the row's spelling
    if values.get("fp16"):
        values["precision"] = "fp16"
    check(step, values)
    # Changes count as given from here on, so that fine-tuning and the baseline inherit a sweep's seed.
    return Settings(step, values, origins, {**given, **changes}, header, task)


# {a flag's type: (the expected value in words, the types that fit)}. bool is an int to Python, but not a number here.
HEADER_TYPES = {bool: ("True or False", (bool,)), int: ("a whole number", (int,)), float: ("a number", (int, float))}
TEXT = ("text in quotes", (str, Path))


def read_header(header, rows, source="HEADER"):
    """A HEADER, or what a record holds, as the command line would give it; None counts as not given. `rows`: {name:
    Flag}. Raises UserError for a name that is no flag and a value that is not of its flag's type or choices."""
    read = {}
    for name, value in header.items():
        if name not in rows:
            raise UserError(f"{source}: {name!r} is no flag of this script")
        flag = rows[name]
        expected, types = HEADER_TYPES.get(flag.type, TEXT)
        values = value if flag.type is list and isinstance(value, list) and value else [value]  # may omit the list
        fits = all(isinstance(each, types) and (types == (bool,) or not isinstance(each, bool)) for each in values)
        if value is not None and (not fits or (flag.choices and not {*values} <= {*flag.choices})):
            expected = f"one of {', '.join(flag.choices)}" if flag.choices else expected
            raise UserError(f"{source}: {name!r} is {value!r}, expected {expected}")
        if value is not None:
            values = [str(each) if types == TEXT[1] else flag.type(each) for each in values]
            read[name] = values if flag.type is list else values[0]
    return read


def command(step, values):
    """The command of a step with these flags, ready to paste."""
    script = shlex.quote(flags.at_root(flags.SCRIPTS[step]))
    words = ["python", script, *([f"--{flags.SWITCHES[step]}"] if step in flags.SWITCHES else [])]
    for name, value in values.items():
        if value is not None and value is not False:  # 0 is a value
            each = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *(shlex.quote(without_secrets(str(part))) for part in each)]
    return " ".join(words)


def beside_student(step, student, output):
    """{"output_dir": folder} where a training would write into its own student's folder, else {}."""
    same = student and output and Path(student).resolve() == Path(output).resolve()
    return {"output_dir": f"{Path(student)}_{step}"} if same and step != EVALUATION else {}


def sample_of(step, asked):
    """{flag: value} for --sample, {} without it. `asked`: {flag: value} from header and command line."""
    # Any task can use the sample's small models, but a task other than the sample's brings its own data.
    rows = flags_of(step) if asked.get("sample") else {}
    own_task = flags.task_key(asked.get("task_name") or flags.SAMPLE_TASK) != flags.task_key(flags.SAMPLE_TASK)
    return {name: flag.value_at(step, "sample") for name, flag in rows.items() if not (own_task and flag.sample_data)}


def check(step, values):
    """Raise UserError for a value out of range or a contradiction between values."""
    for name, flag in flags_of(step).items():
        if flag.type in (flags.path, model, list) and values[name] in ("", [""]):
            raise UserError(f'--{name} "": expected a path')
        if flag.type is flags.path and (values[name] or "").startswith("~"):
            raise UserError(f"--{name} {values[name]}: no such user; a name that begins with ~ is given as ./~name")
        if flag.type in (int, float) and values[name] is not None and not flags.EXPECTED[flag.expected](values[name]):
            raise UserError(f"--{name} {values[name]}: expected {flag.expected}")
    downloads.check_upload(values["data_url"] or "")
    if "hidden_weight" in values and not values["attention_weight"] and not values["hidden_weight"]:
        raise UserError("--attention_weight 0 --hidden_weight 0: nothing is left to learn")
    pieces = values.get("student_vocab")
    if pieces not in (None, "task") and not pieces.isdecimal():
        raise UserError(f"--student_vocab {pieces}: expected task, or the number of word pieces to keep")
    if values.get("baseline") and not (values["do_eval"] or step == PREDICTION):
        raise UserError("--baseline: goes with --pred_distill or --do_eval, whose student it is compared with")
    if values.get("unlabelled") and step not in (INTERMEDIATE, PREDICTION):
        raise UserError("--unlabelled: for the two steps of distillation only; all else needs labels")
    if values.get("teacher_states") and step != INTERMEDIATE:
        raise UserError("--teacher_states: for the intermediate step only; the next one keeps the teacher's logits")
    if step == FINETUNE and any(values[name] for name in EVALUATIONS):
        told = "does not go with --do_eval, --do_predict or --do_export, which ask for another step"
        raise UserError(f"--do_finetune: {told}")
    if step == EVALUATION and values["predict_file"] and (values["do_eval"] or values["pred_distill"]):
        raise UserError("--predict_file: does not go with --do_eval or --pred_distill")
    if values.get("seeds"):
        parts = values["seeds"].split(",")
        if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
            raise UserError(f"--seeds {values['seeds']}: expected different whole numbers with commas between: 1,2,3")
        if step == FINETUNE or any(values[name] for name in EVALUATIONS[1:]):
            raise UserError("--seeds: for the two steps of distillation and for --do_eval only")


def task_step(given, header):
    """Which of task_distill.py's steps is requested."""
    switches = {"do_finetune": FINETUNE, **dict.fromkeys(EVALUATIONS, EVALUATION), "pred_distill": PREDICTION}
    return next((step for name, step in switches.items() if given.get(name) or header.get(name)), INTERMEDIATE)
