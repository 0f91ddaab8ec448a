"""The four scripts in order on tiny data, and what each leaves: what the tests of whole scripts share."""

import contextlib
import importlib.util
import itertools
import os
import shutil
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from tiny import call_script, make_all, make_sst2, names, run_script, scripts, tree

from transformer import drawing
from transformer.file_utils import atomic_write

DRAWN = importlib.util.find_spec("matplotlib") is not None
MODEL = {
    "config.json",
    "vocab.txt",
    "tokenizer_config.json",
    "pytorch_model.bin",
    "run.json",
    "log.txt",
    "train_log.jsonl",
    *(["curves.png"] if DRAWN else []),
}
REPORT = {"report.md", "report.json", *(["report.png"] if DRAWN else [])}
# Long enough for a signal to arrive in the middle.
LONGER = {
    "general": ["--num_train_epochs", 40, "--eval_step", 20, "--max_steps", 60],
    "finetune": ["--num_train_epochs", 1.3, "--eval_step", 20],
    "intermediate": ["--num_train_epochs", 6, "--eval_step", 10],
    "prediction": ["--num_train_epochs", 6, "--eval_step", 10],
    "pregenerate": ["--epochs_to_generate", 16, "--num_workers", 2],
}
SHORT = {
    "general": ["--num_train_epochs", 2, "--eval_step", 3],
    "finetune": ["--limit", 30, "--eval_step", 4],
    "intermediate": ["--num_train_epochs", 1, "--eval_step", 4],
    "prediction": ["--num_train_epochs", 1, "--eval_step", 4],
    "pregenerate": ["--epochs_to_generate", 3, "--num_workers", 1],
    "augment": [],
    "packed": ["--epochs_to_generate", 2, "--packed"],
}
LEAVES = {
    "augment": {"glue/SST-2/train_aug.tsv", "glue/SST-2/train_aug.run.json"},
    "pregenerate": {"2/run.json"}
    | {f"2/epoch_{epoch}{end}" for epoch in range(16) for end in (".json", "_metrics.json")},
    "general": {f"3/{name}" for name in MODEL} | {f"3/step_{step}_pytorch_model.bin" for step in (40, 60)},
    "finetune": {f"teacher/SST-2/{name}" for name in MODEL | {"eval_results.txt"}},
    "intermediate": {f"4/{name}" for name in MODEL | {"eval_results.txt"}},
    "prediction": {f"5/{name}" for name in MODEL | REPORT | {"eval_results.txt"}},
    "evaluate": {f"evaluated/{name}" for name in REPORT | {"eval_results.txt"}},
}
OUTPUT = {
    "augment": "glue/SST-2",
    "pregenerate": "2",
    "general": "3",
    "finetune": "teacher/SST-2",
    "intermediate": "4",
    "prediction": "5",
}
# One step for each script starts as a user starts it; to start the others so too would prove nothing more.
STARTED = {"augment", "pregenerate", "general", "intermediate"}


class Pipeline(NamedTuple):
    """What a run of all scripts left: its folder; by step, the files that are new after it, and what it printed."""

    folder: Path
    left: dict
    printed: dict


def run_pipeline(folder):
    """Run all scripts in order in a new folder."""
    make_all(folder)
    make_sst2(folder / "glue" / "SST-2", train=650)  # six chunks of rows for augmentation
    left, printed = {}, {}
    for name in scripts(folder):
        before = names(folder)
        script, flags = command(folder, name)
        if name == "intermediate":  # the rest trains on less
            shorten(folder / "glue" / "SST-2" / "train_aug.tsv", folder / "whole_aug.tsv")
            before.add("whole_aug.tsv")
        with no_pictures() if name in ("finetune", "evaluate") else contextlib.nullcontext():  # others draw the same
            process = run_script(script, *flags) if name in STARTED else call_script(script, *flags)
        assert process.returncode == 0 and process.stderr == "", process.stderr
        assert before <= names(folder)
        left[name], printed[name] = names(folder) - before, process.stdout
    shutil.move(folder / "whole_aug.tsv", folder / "glue" / "SST-2" / "train_aug.tsv")
    return Pipeline(folder, left, printed)


def command(folder, name):
    """(script, flags) of a step of the pipeline in `folder`."""
    script, flags = scripts(folder)[name]
    aside = ["--output_dir", folder / "evaluated"] if name == "evaluate" else []  # its results are the same file's name
    return script, [*flags, *LONGER.get(name, []), *aside]


def call(folder, name, *flags):
    """Run a step again in this process; returns the finished process."""
    script, usual = command(folder, name)
    return call_script(script, *usual, *flags)


def shorten(path, aside, rows=120):
    """Keep the first rows of a file; the whole of it goes aside."""
    lines = path.read_bytes().splitlines(keepends=True)
    os.replace(path, aside)
    path.write_bytes(b"".join(lines[:rows]))


def clear(folder, name):
    """Take away what a step left, for it to run again."""
    for file in LEAVES[name]:
        (folder / file).unlink(missing_ok=True)


@contextlib.contextmanager
def no_pictures():
    """Scripts called in this process write a file in place of each picture, in a hundredth of the time."""

    def write(path, panels):
        with atomic_write(path, "wb") as file:
            file.write(b"a picture")
        return True

    with mock.patch.object(drawing, "save_panels", write) if DRAWN else contextlib.nullcontext():
        yield


class Killed(BaseException):
    """Stands for the end of the process, which no handler sees."""


def ends_the_same(train, folder, every=1):
    """Kill train(output folder) at each `every`-th of the files that it puts in place, and start it again: it must end
    with the bytes of a run that went through. Returns these, {name: bytes}."""
    replace = os.replace

    def killed_at(number):
        calls = itertools.count()

        def replacing(*paths):
            if next(calls) == number:
                raise Killed
            replace(*paths)

        return calls, mock.patch("os.replace", replacing)

    calls, counted = killed_at(-1)
    with no_pictures(), counted:
        train(folder / "straight")
    expected, count = tree(folder / "straight"), next(calls)
    assert count > 8
    for number in range(0, count, every):
        with no_pictures():
            with killed_at(number)[1], pytest.raises(Killed):
                train(folder / "killed")
            train(folder / "killed")
        assert tree(folder / "killed") == expected, number
        shutil.rmtree(folder / "killed")
    return expected
