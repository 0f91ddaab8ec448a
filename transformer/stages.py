"""The stage folders, every script's defaults, and what all scripts share: settling flags, claiming an output, failing.

A flag's value is the command line's, else the script header's, else (with --sample) the sample's, else the task's, else
the step's or script's default. Flags that nobody gave are None until `settle` fills them in.
"""

import argparse
import hashlib
import json
import logging
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from transformer.files import LOCKS, UserError, append_to, atomic_write, lock_folder, make_folder, read_json, write_json

__all__ = ["LOCKS", "append_to"]

ROOT = Path(__file__).resolve().parents[1]

REPORT_NAME, PICTURE_NAME, BASELINE = "report.md", "report.png", "baseline"  # beside a task's student
SAMPLES, SAMPLE_BYTES = 1000, 1 << 20  # of a large input, by which it is known again: a second's work


def at_root(name):
    """A path below the repository's root, wherever a script is started; short where it is started there."""
    return name if Path.cwd() == ROOT else str(ROOT / name)


# The folders, by stage.
TEACHER, STUDENT_CONFIG = at_root("teacher_model"), at_root("student_model")
CORPUS, GLOVE = at_root("1_pre_data/documents.txt"), at_root("1_pre_data/glove.6B.100d.txt")
GLUE = at_root(".")  # the tasks' folders are here
PREGENERATED = at_root("2_pregenerate_data")
GENERAL_STUDENT = at_root("3_general_distill")
INTERMEDIATE_STUDENT = at_root("4_task_distill_mid")
TASK_STUDENT = at_root("5_task_distill_out")
SAMPLE = at_root("1_pre_data/sample")
SAMPLE_TEACHER = f"{SAMPLE}/teacher"

# What all scripts start from, and all that train.
COMMON = {"seed": 42, "precision": "auto"}
TRAINING = {
    **COMMON,
    "train_batch_size": 32,
    "learning_rate": 5e-5,
    "weight_decay": 1e-4,
    "num_train_epochs": 3.0,
    "warmup_proportion": 0.1,
    "gradient_accumulation_steps": 1,
    "local_rank": -1,
    "max_seq_length": 128,
    "layer_map": "uniform",
    "attention_loss": "scores",
    "attention_weight": 1.0,
    "hidden_weight": 1.0,
}

AUGMENTATION = {
    **COMMON,
    "pretrained_bert_model": TEACHER,
    "glove_embs": GLOVE,
    "glue_dir": GLUE,
    "task_name": "SST-2",
    "N": 30,
    "M": 15,
    "p": 0.4,
    "batch_size": 32,
    "precision": "fp32",  # in less, what a word is replaced by would depend on the batch that it was in
}
PREGENERATION = {
    **COMMON,
    "train_corpus": CORPUS,
    "output_dir": PREGENERATED,
    "bert_model": TEACHER,
    "num_workers": 1,
    "epochs_to_generate": 3,
    "max_seq_len": 128,
    "short_seq_prob": 0.1,
    "masked_lm_prob": 0.0,
    "max_predictions_per_seq": 20,
}
GENERAL_DISTILLATION = {
    **TRAINING,
    "pregenerated_data": PREGENERATED,
    "teacher_model": TEACHER,
    "student_model": STUDENT_CONFIG,
    "output_dir": GENERAL_STUDENT,
    "eval_batch_size": 32,
    "eval_step": 1000,
    "keep_checkpoints": 2,
    "init_student": "teacher",
}

# task_distill.py does four things, each with its own place to read and to write.
TASK = {
    **TRAINING,
    "teacher_model": TEACHER,
    "task_name": "SST-2",
    "eval_batch_size": 32,
    "eval_step": 50,
    "temperature": 1.0,
}
TASK_STEPS = {
    "intermediate": {**TASK, "student_model": GENERAL_STUDENT, "output_dir": INTERMEDIATE_STUDENT},
    "prediction": {**TASK, "student_model": INTERMEDIATE_STUDENT, "output_dir": TASK_STUDENT},
    "evaluation": {**TASK, "student_model": TASK_STUDENT, "output_dir": TASK_STUDENT},
    # A teacher of BERT-base's size writes 1.3 GB at every evaluation, so they are rarer here.
    "finetune": {**TASK, "learning_rate": 3e-5, "weight_decay": 0.01, "eval_step": 500},
}

# --sample: small models and few steps on the bundled files; chosen to end in a working student within four minutes.
SAMPLE_COMMON = {"max_seq_length": 64}
SAMPLE_AUGMENTATION = {
    "pretrained_bert_model": SAMPLE_TEACHER,
    "glove_embs": f"{SAMPLE}/vectors.txt",
    "glue_dir": SAMPLE,
    "N": 4,
    "M": 8,
}
SAMPLE_PREGENERATION = {"bert_model": SAMPLE_TEACHER, "max_seq_len": 64, "epochs_to_generate": 2}
SAMPLE_GENERAL_DISTILLATION = {
    **SAMPLE_COMMON,
    "teacher_model": SAMPLE_TEACHER,
    "student_model": f"{SAMPLE}/student",
    "learning_rate": 5e-4,
    "num_train_epochs": 20.0,
    "eval_step": 200,
}
SAMPLE_TASK = {
    **SAMPLE_COMMON,
    "teacher_model": SAMPLE_TEACHER,
    "data_dir": f"{SAMPLE}/SST-2",
    "aug_train": True,
    "eval_step": 100,
}
SAMPLE_TASK_STEPS = {
    "intermediate": {**SAMPLE_TASK, "learning_rate": 5e-4, "num_train_epochs": 1.5},
    "prediction": {**SAMPLE_TASK, "learning_rate": 5e-4, "num_train_epochs": 1.0},
    "evaluation": SAMPLE_TASK,
    "finetune": {**SAMPLE_TASK, "aug_train": None, "learning_rate": 2e-4, "num_train_epochs": 4.0},
}

OF_SAMPLE_DATA = ("data_dir", "glue_dir", "aug_train")


def sample_values(values, task_name):
    """The sample's values as they are for a task: another one than the sample's comes with its own data, which nobody
    may have augmented; the small models are for all."""
    own = task_name not in (None, TASK["task_name"])
    return {name: value for name, value in values.items() if not (own and name in OF_SAMPLE_DATA)}


# Flags that change where or how fast a run works, not what comes out.
NOT_THE_RESULT = {
    "overwrite_output",
    "debug",
    "data_url",
    "cache_dir",
    "num_workers",
    "reduce_memory",
    "local_rank",
    "no_cuda",
    "sample",
    "origins",
    "pregenerated_data",
    "output_dir",
    "data_dir",
    "no_finetune",
    "do_finetune",
    "do_eval",
    "do_predict",
    "baseline",
    "eval_batch_size",
    "fp16",
    "batch_size",
    "keep_checkpoints",
    "seeds",
}


def make_parser(doc):
    """An argument parser whose help is the script's docstring; a flag not given is None."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def flag(group, *names, **options):
    """Add a flag with no default, so that "not given" can be told from "given"."""
    if options.get("action") == "store_true":
        options["default"] = None
    group.add_argument(*names, **options)


def add_common_flags(parser, short_run):
    """The flags every script has. `short_run`: "max_steps" or "limit", the one that makes a debugging run short."""
    group = parser.add_argument_group("common")
    flag(group, "--sample", action="store_true", help="run on the bundled sample; flags that are given still win")
    flag(group, "--seed", type=int, help="all randomness comes from it (42)")
    flag(
        group, "--overwrite_output", action="store_true", help="replace a finished output, or one made with other flags"
    )
    if short_run == "max_steps":
        flag(group, "--max_steps", type=int, help="stop after this many optimizer steps, for debugging (off)")
    flag(group, "--limit", type=int, help="read only this many rows (or documents), for debugging (off)")
    flag(
        group,
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="auto = bf16 on a GPU that has it, else fp32, with TF32 products (auto; in data_augmentation.py fp32)",
    )
    flag(group, "--data_url", help="a folder or s3://bucket/prefix that finished outputs are copied to (off)")
    flag(group, "--debug", action="store_true", help="show the traceback of an error")
    return group


def settle(args, *layers):
    """Fill in what was not given. `layers`: (origin, values) in order of precedence, the plain defaults last.

    Returns {flag: origin} of the values that are neither default nor absent.
    """
    origins = {name: "command line" for name, value in vars(args).items() if value is not None}
    for position, (origin, values) in enumerate(layers):
        for name, value in values.items():
            if not hasattr(args, name):
                if origin == "script header":
                    raise UserError(f"HEADER: {name!r} is no flag of this script")
                continue  # a value for a flag that this script lacks
            if getattr(args, name) is None:
                setattr(args, name, value)
                if position < len(layers) - 1 and value is not None:
                    origins[name] = origin
    if getattr(args, "fp16", None):
        args.precision = "fp16"
    if not 0 <= (args.seed or 0) < 1 << 63:
        raise UserError(f"--seed {args.seed}: expected 0 or more, below 2^63")
    return origins


def check_positive(args, *names):
    """Raise UserError for a number that must be above 0 and is not."""
    for name in names:
        value = getattr(args, name, None)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value}: expected a number above 0")


def check_not_negative(args, *names):
    """Raise UserError for a number that is negative, infinite or none."""
    for name in names:
        if not 0 <= getattr(args, name) < float("inf"):
            raise UserError(f"--{name} {getattr(args, name)}: expected a number that is not negative")


def check_training(args):
    """Raise UserError for training flags out of range."""
    check_positive(
        args,
        "train_batch_size",
        "eval_batch_size",
        "num_train_epochs",
        "gradient_accumulation_steps",
        "eval_step",
        "max_seq_length",
        "max_steps",
        "limit",
    )
    if not 0 <= args.warmup_proportion < 1:
        raise UserError(f"--warmup_proportion {args.warmup_proportion}: expected 0 up to 1, 1 excluded")
    check_not_negative(args, "attention_weight", "hidden_weight", "learning_rate", "weight_decay")
    if not args.attention_weight and not args.hidden_weight:
        raise UserError("--attention_weight 0 --hidden_weight 0: nothing is left to learn")


def print_settings(args):
    """Log every value that is not the default, and where it came from."""
    for name, origin in sorted(args.origins.items(), key=lambda item: (item[1], item[0])):
        value = getattr(args, name)
        logging.info("  %-28s %-36s %s", name, " ".join(value) if isinstance(value, list) else value, origin)


def set_up_logging(quiet=False):
    """Log to the terminal. `quiet`: warnings only (all processes but the first)."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
    add_handler(logging.StreamHandler(sys.stdout))


def log_to(path):
    """From here on log to this file as well, and to no other file; None = to the terminal only."""
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()
    try:
        if path is not None:
            add_handler(logging.FileHandler(path, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def add_handler(handler):
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.getLogger().addHandler(handler)


def run(main):
    """Call a script's main(). Bad input ends in one line and status 2, an interruption in status 130 or 143."""
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.signal(signal.SIGINT, _end_at_once)
    try:
        main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a file that may not be read, a disk that is full
        if "--debug" in sys.argv or error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename else "a file cannot be read or written: "
        print(f"error: {place}{error.strerror}; the same command goes on from the last saved state", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        # Named by its name: torch is loaded only where a model runs.
        if "--debug" in sys.argv or "OutOfMemory" not in type(error).__name__ and "allocate memory" not in str(error):
            raise
        print(
            "error: out of memory; a smaller batch size, or more --gradient_accumulation_steps, may help; the same "
            "command goes on from the last saved state",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last saved state", file=sys.stderr)
        sys.exit(130)


def _end_at_once(signum, frame):
    """Ctrl-C and SIGTERM outside a training loop (which saves first). An exception raised here could come up in the
    middle of a library's locks and leave the process waiting for ever; all files bear an end at any moment, so this is
    one."""
    word = "terminated" if signum == signal.SIGTERM else "interrupted"
    os.write(2, f"{word}: the same command goes on from the last saved state\n".encode())
    os._exit(128 + signum)


def fingerprint(path):
    """A short digest of an input: a file's bytes, of a large one its size and a thousand samples; of a folder, its
    model files' digests; of a list of files, all of theirs."""
    if isinstance(path, list):
        digests = "+".join(map(fingerprint, path))
        return digests if len(path) == 1 else hashlib.sha256(digests.encode()).hexdigest()[:12]
    path = Path(path)
    if path.is_dir():
        names = (
            "config.json",
            "vocab.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "pytorch_model.bin",
            "model.safetensors",
        )
        return "+".join(fingerprint(path / name) for name in names if (path / name).is_file())
    if not path.is_file():
        return "none"
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode())
    with open(path, "rb") as file:
        for start in range(0, size, max(SAMPLE_BYTES, (size - SAMPLE_BYTES) // SAMPLES)):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(size - SAMPLE_BYTES, 0))
        digest.update(file.read())
    return digest.hexdigest()[:12]


class OutputRecord:
    """What an output was made with, in a JSON file beside it: how a run knows to start, to go on, or to leave it alone.

    `claim` says "fresh", "resume" or "finished" and changes nothing; `begin`, called when all inputs were read without
    an error, is the first to write; `finish` marks the output complete, as the last thing a run writes.
    """

    def __init__(self, path, result, script, args, inputs):
        """`result`: the file without which the output is not finished; `inputs`: {flag: path or paths} of what is read;
        they count by content, not by path. Raises UserError where the output would replace an input folder.
        """
        self.path, self.result = Path(path), Path(result)
        for name, file in inputs.items():
            for folder in (*_listed(file), *_listed(getattr(args, name, None))):
                if Path(folder).resolve() == self.path.parent.resolve():
                    raise UserError(f"--output_dir {self.path.parent}: is the folder of --{name}, choose another")
        settings = {
            name: value
            for name, value in vars(args).items()
            if value is not None and value is not False and name not in NOT_THE_RESULT and name not in inputs
        }
        contents = {name: fingerprint(file) for name, file in inputs.items() if file is not None}
        self.values = {"script": script, "settings": settings, "inputs": contents}
        self.values = json.loads(json.dumps(self.values))  # as it will read back
        self.progress = None  # what the run in this output had done when it was last saved
        self.replaced = None  # files that `begin` removes; None = it goes on with what is there

    def claim(self, outputs, overwrite):
        """Compare with what is there. `outputs`: the files that would be replaced. Raises UserError: made otherwise, or
        another run is at it."""
        if self.path.parent.is_dir():
            lock_folder(self.path.parent)
        found, present = self._read(overwrite), [path for path in outputs if Path(path).exists()]
        known = _is_record(found)
        differences = self._differences(found) if known else []
        # What the same command was killed in goes on, --overwrite_output among its flags or not.
        overwrite = overwrite and (not known or bool(differences) or bool(found.get("finished")))
        gone = isinstance(found, dict) and (
            found.get("clearing") or (found.get("finished") and not self.result.exists())
        )
        if overwrite or gone or (found is None and not present):
            self.replaced = present
            return "fresh"
        if not known:
            present = present or [self.path]
            raise UserError(f"{present[0]}: already there, made by something else; --overwrite_output replaces it")
        if differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise UserError(
                f"{self.path.parent}: made with other inputs or flags: {'; '.join(differences[:3])}{more}; "
                "--overwrite_output replaces it"
            )
        self.progress = found.get("progress")
        return "finished" if found.get("finished") else "resume"

    def _read(self, overwrite):
        """The record that is there, or None; a broken one is an error unless it is to be replaced."""
        try:
            return read_json(self.path) if self.path.is_file() else None
        except UserError:
            if overwrite:
                return None
            raise

    def _differences(self, found):
        return [
            f"{name} was {_short(found[part].get(name))}, is now {_short(self.values[part].get(name))}"
            for part in ("settings", "inputs")
            for name in sorted({*found[part], *self.values[part]})
            if found[part].get(name) != self.values[part].get(name)
        ]

    def begin(self):
        """Note what the output is made with, and remove what it replaces. Raises UserError: another run is at it."""
        lock_folder(make_folder(self.path.parent))
        if self.replaced is not None:
            # A run killed among the removals must not take what is left for its own.
            self._write(finished=False, clearing=True)
            for path in self.replaced:
                Path(path).unlink(missing_ok=True)
            self._write(finished=False)

    def save_progress(self, files, progress):
        """Note how far `files`, or one, have come, once what was written to them is safely on the disk."""
        for file in files if isinstance(files, list) else [files]:
            file.flush()
            os.fsync(file.fileno())
        self.progress = progress
        self._write(finished=False)

    def finish(self):
        self.progress = None
        self._write(finished=True)

    def _write(self, finished, clearing=False):
        make_folder(self.path.parent)
        progress = {} if self.progress is None else {"progress": self.progress}
        clearing = {"clearing": True} if clearing else {}
        write_json(self.path, {**self.values, **progress, **clearing, "finished": finished})


def _listed(value):
    return value if isinstance(value, list) else [] if value is None else [value]


def _short(value):
    text = "not given" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_record(folder):
    """What the model in a folder was made with: run.json's script, settings and inputs; {} where there is no such
    record."""
    path = Path(folder) / "run.json"
    found = read_json(path) if path.is_file() else None
    return found if _is_record(found) else {}


def _is_record(found):
    return isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in ("settings", "inputs"))


def model_outputs(folder):
    """The files of a training run's output folder that are there (the resume state, the log, and what is compared with
    its student among them)."""
    names = (
        "config.json",
        "vocab.txt",
        "tokenizer_config.json",
        "pytorch_model.bin",
        "step_*_pytorch_model.bin",
        "training_state.bin",
        "teacher_logits.npy",
        "eval_results.txt",
        "log.txt",
        "train_log.jsonl",
        "curves.png",
        REPORT_NAME,
        PICTURE_NAME,
    )
    folders = [Path(folder), Path(folder) / BASELINE]
    return [path for place in folders for name in names for path in sorted(place.glob(name))]


def write_results(path, results):
    """Write eval_results.txt: one `key = value` line a result."""
    with atomic_write(path) as file:
        file.writelines(f"{name} = {value}\n" for name, value in results.items())


def read_results(path, numbers=True):
    """What an eval_results.txt says, {name: value}; `numbers` False: as text."""
    pairs = (line.split(" = ", 1) for line in Path(path).read_text(encoding="utf-8").splitlines())
    return {name: float(value) if numbers else value for name, value in pairs}


def sum_up(status, result, started, done):
    """What a stage tells at its end. `status`: of its record's claim; `done`: rows in, rows out."""
    if status == "finished":
        logging.info("finished before: %s", result)
    else:
        logging.info("%s, %s", done, format_seconds(time.monotonic() - started))
        logging.info("written: %s", result)


def hint_next(script, args, flags, defaults, *more):
    """Tell the command of the next stage, to be pasted.

    Args: flags: {flag: value} that it needs from this one, where they are not its `defaults` anyway; more: flags as
    they stand.
    """
    words = ["python", script, *more]
    for name, value in flags.items():
        if value in (None, False) or str(value) == str(defaults.get(name)):
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", shlex.quote(str(value))]
    logging.info("next: %s%s", " ".join(words), " --sample" if args.sample else "")


def format_seconds(seconds):
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
