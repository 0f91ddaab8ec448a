"""Outputs of a run. Every stage makes its output in the same way:

    with Output(result, provenance, inputs, processes, next_command) as output:
        if not output.finished:
            ...                      read every input: an error here leaves existing files untouched
            output.begin()           the first write; from here on a killed run can resume
            ...                      work, with output.save_progress(...) now and then
            output.finish("7 rows in, 30 rows out")
        ...                          optional extras, such as a report

A record beside the output says what it was made with, by which command, and at the end which files it needs
("results"), for the next stage too (`downloads.check_finished`). A run compares itself with that record and starts a
new output, resumes its own, skips a finished one, or refuses to touch one that was made differently or has lost a file.
`check()` does the same comparison before any work, where an input has yet to be made.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from transformer.console import command_line, format_seconds, log_to
from transformer.downloads import MADE, MODEL_PARTS, OVERWRITE, RECORD_NAME, check_finished, missing_files, upload
from transformer.files import UserError, atomic_write, lock_folder, make_folder, unlock_folder, write_json
from transformer.json_file import FLAG, NULL, NUMBER, Field, check, read_json, whole

REPORT_NAME, PICTURE_NAME, TABLE_NAME = "report.md", "report.png", "report.json"  # beside a task's student
BASELINE_FOLDER, GENERAL_BASELINE_FOLDER = "baseline", "baseline_general"  # likewise, with --baseline
LOG_NAME, RESULTS_NAME = "log.txt", "eval_results.txt"
MODEL_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "pytorch_model.bin")
MODEL_FILES += ("model.safetensors", "*.index.json", "pytorch_model-*.bin", "model-*.safetensors")  # or in shards
# Everything that a training leaves in its folder, including its saved state and the report.
TRAINED = ("config.json", "vocab.txt", "tokenizer_config.json", "pytorch_model.bin", "step_*_pytorch_model.bin")
TRAINED += ("model.safetensors", "training_state.bin", "teacher_logits.npy", "teacher_states*.bin")
TRAINED += ("train_log.jsonl", "curves.png")
TRAINED += (RESULTS_NAME, LOG_NAME, REPORT_NAME, PICTURE_NAME, TABLE_NAME)
TRAINED += tuple(f"{each}/{name}" for each in (BASELINE_FOLDER, GENERAL_BASELINE_FOLDER) for name in TRAINED)
# A record, and those of its settings that are not only compared.
OBJECT, DIGESTS = Field("an object", (dict,)), Field("a digest for each input", (dict,), of=Field("a digest"))
RECORD = MADE | {"script": Field("a name"), "settings": OBJECT, "inputs": DIGESTS, "progress": OBJECT, "clearing": FLAG}
SETTINGS = {"step": Field("a name or null", (str, NULL)), "train_batch_size": whole(1)}
SETTINGS["num_train_epochs"] = Field("a number", NUMBER)
SAMPLES, SAMPLE_BYTES = 1000, 1 << 20  # parts of a large input that identify it; this takes about a second


class OneProcess:
    """The part of `processes.Processes` that an output uses, for a stage that does not load torch."""

    first, world_size = True, 1
    from_first = staticmethod(lambda function: function())
    barrier = staticmethod(lambda: None)


@dataclass
class Output:
    """Something that a run makes, and the record of how it was made."""

    result: Path  # the file whose presence a finished output needs
    provenance: object  # settings.Provenance
    inputs: dict  # {name: path, paths, or None = not known yet} of the inputs, compared by content, not by path
    processes: object = OneProcess
    next_command: str | None = None  # what to run next
    replaces: tuple = TRAINED  # patterns of the files that a new run removes; a training's output has a log
    shown: Path | None = None  # the path in the summary; None = the result
    whole_folder: bool = True  # the whole folder is the output; else only the result, and the record is named after it

    def __post_init__(self):
        self.folder = Path(self.result).parent
        self.path = self.folder / (RECORD_NAME if self.whole_folder else f"{self.result.stem}.{RECORD_NAME}")
        self.progress = None  # as last saved by a run that was killed
        self.replaced = None  # the files that `begin` removes; None = the run resumes
        self.started, self.finished = time.monotonic(), False

    def check(self):
        """Raise, in every process, the UserError that entering would raise, as far as the inputs are known by now.
        Changes nothing on the disk."""
        self._check_sources()
        self.processes.from_first(self._compare)

    def __enter__(self):
        """Compare with the existing output. Raises UserError, in every process, if it must not be touched."""
        self._check_sources()
        self.finished, self.progress = self.processes.from_first(self._claim)
        return self

    def _check_sources(self):
        if self.whole_folder:  # a single file may lie beside its inputs
            check_apart(self.folder, (*self.provenance.sources, *self.inputs.items()))

    def _claim(self):
        """Decide whether to skip, resume or start over: (whether the output is finished, its progress)."""
        lock_folder(make_folder(self.folder))
        found, present = self._compare()
        # A killed run resumes even with --overwrite_output, which replaces only what was there before it.
        fresh = not found or (self.provenance.overwrite and found.get("finished"))
        self.command = (not fresh and found.get("command")) or command_line(self.processes)
        if fresh:
            self.replaced = present
            return False, None
        return bool(found.get("finished")), found.get("progress")

    def _compare(self):
        """(the record of this very output, {} without one; the files in its place). Raises UserError for files of
        another origin, or an output from other flags or inputs."""
        settings = {name: value for name, value in self.provenance.settings.items() if name not in self.inputs}
        contents = {name: fingerprint(file) for name, file in self.inputs.items() if file is not None}
        values = {"script": self.provenance.script, "settings": settings, "inputs": contents}
        self.values = json.loads(json.dumps(values))  # as the record reads back
        present, found, overwrite = self._present(), {}, self.provenance.overwrite
        with contextlib.suppress(*[UserError] * overwrite):  # a broken record, which will be replaced
            found = read_record(self.path)
        # Another script's files are not those that this run would remove.
        other = bool(found) and found.get("script") != self.provenance.script
        # A run was killed while it removed old files, or all of them were deleted later.
        gone = not other and (found.get("clearing") or (found.get("finished") and not present))
        differences = self._differences(found) if found and not gone else []

        if not overwrite and not found and (present or self.path.exists()):
            raise UserError(f"{[*present, self.path][0]}: already there, made by something else; {self._way_out()}")
        if other and differences:
            told = f"has the output of {found['script']}, which another script never replaces"
            raise UserError(f"{self.folder}: {told}; {self._way_out(other)}")
        if differences and not overwrite:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            told = f"made with other inputs or flags: {'; '.join(differences[:3])}{more}; {self._way_out()}"
            raise UserError(f"{self.folder if self.whole_folder else self.result}: {told}")
        if not (overwrite or gone) and found.get("finished"):
            gone = bool(missing_files(self.folder, [self.result.name]))
            if not gone:  # what else it needs must be there: to make it all again could take hours
                check_finished(self.folder)
        return {} if gone or differences else found, present

    def _present(self):
        """The files in the output's place."""
        return [path for pattern in self.replaces for path in sorted(self.folder.glob(pattern))]

    def _way_out(self, other=False):
        # The folder of a training inside another step is not the one that --output_dir names.
        elsewhere = self.whole_folder and self.provenance.script not in ("finetune", "baseline")
        ways = [] if other else [f"{OVERWRITE} replaces it"]
        ways += ["--output_dir writes elsewhere"] if elsewhere else []
        return ", ".join(ways) or "move it away first"

    def _differences(self, found):
        was, now = found["settings"], self.values["settings"]
        maker, script = found.get("script"), self.values["script"]
        flags = [f"script was {_short(maker)}, is now {script}"] if maker != script else []
        flags += [
            f"{name} was {_short(was.get(name))}, is now {_short(now.get(name))}"
            for name in sorted({*was, *now} & self.provenance.counted)  # ignore flags that no longer exist
            if was.get(name) != now.get(name)
        ]
        # A file is called by its own name: train.csv, where the flag names only the folder above it.
        files = {name: file.name for name, file in self.inputs.items() if isinstance(file, Path) and file.is_file()}
        unknown = {name for name, file in self.inputs.items() if file is None}
        was, now = found["inputs"], self.values["inputs"]
        for name in sorted({*was, *now} - unknown):
            if was.get(name) != now.get(name):
                known = name in was, name in now
                became = {(True, True): "has changed", (False, True): "was no input"}.get(known, "is no input now")
                flags.append(f"{files.get(name, name)} {became}")
        return flags

    def begin(self):
        """Write the record and remove the files that the output replaces. Call it once all inputs have been read."""
        if self.processes.first:
            if self.replaced is not None:
                # A run killed during the removal must not resume from the remaining files.
                self._write_record(clearing=True)
                for path in self.replaced:
                    Path(path).unlink(missing_ok=True)
                self._write_record()
            log_to(self.folder / LOG_NAME if self.replaces is TRAINED else None)
        self.processes.barrier()  # no process may resume from a state that the first one is about to remove

    def save_progress(self, files, progress):
        """Record `progress` once everything written to `files` is safely on disk."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.progress = progress
        self._write_record()

    def finish(self, done):
        """Mark the output as finished. `done`: what went in and came out, for the summary."""
        self.progress = None
        if self.processes.first:
            parts = (files[0] for files in MODEL_PARTS.values())
            names = parts if self.replaces is TRAINED else (path.name for path in self._present())
            self._write_record(finished=True, results=sorted({self.result.name, *names}))
        self.processes.barrier()  # any process may read the output next
        logging.info("%s, %s", done, format_seconds(time.monotonic() - self.started))
        logging.info("written: %s", self.shown or self.result)

    def _write_record(self, finished=False, **more):
        progress = {} if self.progress is None else {"progress": self.progress}
        write_json(self.path, {**self.values, "command": self.command, **progress, **more, "finished": finished})

    def __exit__(self, kind, *_):
        if kind is None:
            if self.finished:
                logging.info("finished before: %s", self.shown or self.result)
            if self.processes.first:
                # Outputs of other tasks and seeds have folders inside this one, and records of their own.
                own = {self.folder, self.folder / BASELINE_FOLDER, self.folder / GENERAL_BASELINE_FOLDER}
                others = {path.parent for path in self.folder.rglob(RECORD_NAME)} - own
                upload([self.folder if self.whole_folder else self.result], self.provenance.data_url, others)
            if self.next_command:
                logging.info("next: %s", self.next_command)
        log_to(None)
        unlock_folder(self.folder)


def check_apart(folder, places):
    """Raise UserError where an output folder is that of an input. `places`: (flag or file name, path or paths)."""
    for name, place in places:
        for path in map(Path, place if isinstance(place, list) else [place] if place else []):
            if (path.parent if path.is_file() else path).resolve() == Path(folder).resolve():
                of = name if "." in name else f"--{name}"
                raise UserError(f"--output_dir {folder}: is the folder of {of}; choose another")


@contextlib.contextmanager
def holding(folder, student, processes):
    """Hold a folder (None = nothing) for results on the model in `student`, often the same folder. Raises UserError, in
    every process, where it has another run's output, or a run is writing there."""

    def claim():
        if read_record(folder) and Path(folder).resolve() != Path(student).resolve():
            raise UserError(f"--output_dir {folder}: has the output of another run than {student}; choose another")
        lock_folder(make_folder(folder))

    if folder:
        processes.from_first(claim)
    yield
    if folder:
        unlock_folder(folder)


def fingerprint(path):
    """A short digest of an input: of a file's bytes (for a large file its size and a thousand samples), a folder's
    model files, or a list of files."""
    if isinstance(path, list):
        digests = "+".join(map(fingerprint, path))
        return digests if len(path) == 1 else hashlib.sha256(digests.encode()).hexdigest()[:12]
    path = Path(path)
    if path.is_dir():
        return "+".join(fingerprint(file) for name in MODEL_FILES for file in sorted(path.glob(name)))
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
    """The record at a path or in a model folder: script, settings, inputs; {} without one. Raises UserError: broken."""
    path = Path(place) / RECORD_NAME if Path(place).is_dir() else Path(place)
    try:
        found = read_json(path, RECORD) if path.is_file() else {}
        check(found.get("settings", {}), SETTINGS, path)
    except UserError as error:
        raise UserError(f"{error}; where it is no record of this suite, remove it or choose another folder") from None
    return found if {"script", "settings", "inputs"} <= found.keys() else {}


def write_results(path, results):
    """Write eval_results.txt: one `key = value` line per result."""
    with atomic_write(path) as file:
        file.writelines(f"{name} = {value}\n" for name, value in results.items())


def read_results(path):
    """The numbers of an eval_results.txt, {name: value}."""
    pairs, numbers = (line.split(" = ", 1) for line in Path(path).read_text("utf-8", "replace").splitlines()), {}
    for name, *value in pairs:
        with contextlib.suppress(ValueError, IndexError):  # what is no number, as the list of --seeds, is left out
            numbers[name] = int(value[0]) if value[0].isdecimal() else float(value[0])
    return numbers


def _short(value):
    text = "not given" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
