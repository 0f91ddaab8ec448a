"""The one way to make anything: an `Output` is claimed, recorded, locked, logged, finished, uploaded and summed up.

    with Output(result, provenance, inputs, processes, next_command) as output:
        if not output.finished:
            ...                      read every input: an error here leaves what is there untouched
            output.begin()           the first to write; from here on a killed run goes on
            ...                      work, with output.save_progress(...) now and then
            output.finish("7 rows in, 30 rows out")
        ...                          what may come after, a report

A record beside the output says what it was made with. Every run compares itself with it: the output is new, goes on,
is finished, or is somebody else's and left alone.
"""

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from transformer.console import format_seconds, log_to
from transformer.downloads import upload
from transformer.files import UserError, atomic_write, lock_folder, make_folder, read_json, write_json

RECORD_NAME = "run.json"
REPORT_NAME, PICTURE_NAME, BASELINE_FOLDER = "report.md", "report.png", "baseline"  # beside a task's student
LOG_NAME, RESULTS_NAME = "log.txt", "eval_results.txt"
MODEL_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "pytorch_model.bin")
MODEL_FILES += ("model.safetensors",)
# What a training leaves in its folder: the state to go on from, and what is compared with its student, among them.
TRAINED = ("config.json", "vocab.txt", "tokenizer_config.json", "pytorch_model.bin", "step_*_pytorch_model.bin")
TRAINED += ("training_state.bin", "teacher_logits.npy", "train_log.jsonl", "curves.png")
TRAINED += (RESULTS_NAME, LOG_NAME, REPORT_NAME, PICTURE_NAME)
SAMPLES, SAMPLE_BYTES = 1000, 1 << 20  # of a large input, by which it is known again: a second's work


class OneProcess:
    """What an output asks of `processes.Processes`, for a stage that loads no torch."""

    first = True
    from_first = staticmethod(lambda function: function())
    barrier = staticmethod(lambda: None)


@dataclass
class Output:
    """Something that a run makes, and the record of what it is made with."""

    result: Path  # the file without which it is not finished
    provenance: object  # settings.Provenance
    inputs: dict  # {name: path or paths} of what is read, which count by content, not by path
    processes: object = OneProcess
    next_command: str | None = None  # what to run next
    replaces: list | None = None  # the files that a new run removes; None = a model folder's, which has a log too
    shown: Path | None = None  # what the summary names; None = the result
    whole_folder: bool = True  # the folder is all the output's own; else the result is, and the record bears its name

    def __post_init__(self):
        self.folder = Path(self.result).parent
        self.path = self.folder / (RECORD_NAME if self.whole_folder else f"{self.result.stem}.{RECORD_NAME}")
        self.progress = None  # what the run in this output had done when it was last saved
        self.replaced = None  # files that `begin` removes; None = it goes on with what is there
        self.started, self.finished, self.done = time.monotonic(), False, ""

    def __enter__(self):
        """Compare with what is there. Raises UserError, in every process: made otherwise, or another run is at it."""
        read = ((name, file) for name, file in self.inputs.items() if isinstance(file, Path))
        for name, folder in (*self.provenance.sources, *read):
            if Path(folder).resolve() == self.folder.resolve():
                raise UserError(f"--output_dir {self.folder}: is the folder of --{name}, choose another")
        self.finished, self.progress = self.processes.from_first(self._claim)
        return self

    def _claim(self):
        """What is there is finished, goes on, or makes way for a fresh run: (whether it is finished, its progress).

        Raises UserError where it is refused: made by something else, or otherwise.
        """
        settings = {name: value for name, value in self.provenance.settings.items() if name not in self.inputs}
        contents = {name: fingerprint(file) for name, file in self.inputs.items() if file is not None}
        values = {"script": self.provenance.script, "settings": settings, "inputs": contents}
        self.values = json.loads(json.dumps(values))  # as it will read back
        lock_folder(make_folder(self.folder))
        replaces = model_outputs(self.folder) if self.replaces is None else self.replaces
        present = [path for path in replaces if Path(path).exists()]
        found, overwrite = self._read_record(), self.provenance.overwrite
        finished = bool(found.get("finished"))
        # Killed while it removed what it replaces; or somebody removed its result since.
        gone = found.get("clearing") or (finished and not self.result.exists())
        differences = self._differences(found) if found and not gone else []

        if not overwrite and not found and (present or self.path.exists()):
            other = [*present, self.path][0]
            raise UserError(f"{other}: already there, made by something else; --overwrite_output replaces it")
        if not overwrite and differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            told = f"{self.folder}: made with other inputs or flags: {'; '.join(differences[:3])}{more}"
            raise UserError(f"{told}; --overwrite_output replaces it")
        # What the same command was killed in goes on, --overwrite_output among its flags or not.
        if not found or gone or differences or (overwrite and finished):
            self.replaced = present
            return False, None
        return finished, found.get("progress")

    def _read_record(self):
        """The record that is there, {} without one; a broken one is an error unless it is to be replaced."""
        try:
            return read_record(self.path)
        except UserError:
            if self.provenance.overwrite:
                return {}
            raise

    def _differences(self, found):
        return [
            f"{name} was {_short(found[part].get(name))}, is now {_short(self.values[part].get(name))}"
            for part in ("settings", "inputs")
            for name in sorted({*found[part], *self.values[part]})
            if found[part].get(name) != self.values[part].get(name)
            and (part == "inputs" or name in self.provenance.counted)  # a flag of before may have gone since
        ]

    def begin(self):
        """Every input was read without an error: note what the output is made with, and remove what it replaces.

        The other processes wait, so that none goes on from a state that the first one removes.
        """
        if self.processes.first:
            if self.replaced is not None:
                # A run killed among the removals must not take what is left for its own.
                self._write_record(clearing=True)
                for path in self.replaced:
                    Path(path).unlink(missing_ok=True)
                self._write_record()
            log_to(self.folder / LOG_NAME if self.replaces is None else None)
        self.processes.barrier()

    def save_progress(self, files, progress):
        """Note how far `files` have come, once what was written to them is safely on the disk."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.progress = progress
        self._write_record()

    def finish(self, done):
        """The output is whole from here on. `done`: what came in and went out, for the summary."""
        self.progress, self.done = None, done
        if self.processes.first:
            self._write_record(finished=True)
        self.processes.barrier()  # what is written here may be read next, by every process

    def _write_record(self, finished=False, **more):
        progress = {} if self.progress is None else {"progress": self.progress}
        write_json(self.path, {**self.values, **progress, **more, "finished": finished})

    def __exit__(self, kind, *_):
        if kind is None:
            if not self.finished:
                logging.info("%s, %s", self.done, format_seconds(time.monotonic() - self.started))
            logging.info("%s: %s", "finished before" if self.finished else "written", self.shown or self.result)
            if self.processes.first:
                upload([self.folder if self.whole_folder else self.result], self.provenance.data_url)
            if self.next_command:
                logging.info("next: %s", self.next_command)
        log_to(None)


def model_outputs(folder):
    """The files of a training run's output folder that are there."""
    folders = [Path(folder), Path(folder) / BASELINE_FOLDER]
    return [path for each in folders for name in TRAINED for path in sorted(each.glob(name))]


def fingerprint(path):
    """A short digest of an input: a file's bytes, of a large one its size and a thousand samples; of a folder, its
    model files' digests; of a list of files, all of theirs."""
    if isinstance(path, list):
        digests = "+".join(map(fingerprint, path))
        return digests if len(path) == 1 else hashlib.sha256(digests.encode()).hexdigest()[:12]
    path = Path(path)
    if path.is_dir():
        return "+".join(fingerprint(path / name) for name in MODEL_FILES if (path / name).is_file())
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


def read_record(place):
    """What an output, by its record, or the model in a folder was made with: script, settings and inputs.

    {} where there is no record. Raises UserError for a broken one.
    """
    path = Path(place) / RECORD_NAME if Path(place).is_dir() else Path(place)
    found = read_json(path) if path.is_file() else None
    known = isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in ("settings", "inputs"))
    return found if known else {}


def write_results(path, results):
    """Write eval_results.txt: one `key = value` line a result."""
    with atomic_write(path) as file:
        file.writelines(f"{name} = {value}\n" for name, value in results.items())


def read_results(path):
    """The numbers of an eval_results.txt, {name: value}."""
    pairs = (line.split(" = ", 1) for line in Path(path).read_text(encoding="utf-8").splitlines())
    return {name: float(value) for name, value in pairs}


def _short(value):
    text = "not given" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
