"""Something goes wrong at each write, sync, rename and opening of a file in turn, in every step of the pipeline.

Ways: `kill` ends the process there; `lost` too, and what was written and not yet synced is cut off, as in a power cut;
`ENOSPC` and `EIO` are errors of that operation, after which the script must end in one line with status 2 (or finish,
where the file was an extra: a log, a copy that loads faster). Then the same command must end with the bytes of a run
that nothing disturbed.

Prints: each fault as it is found, with its operation; a table, a row a step; status 1 where there was a fault

    python tests/benchmarks/faults.py --points 1100

The points are drawn at random, from each step as many as from another, or all of a step that has fewer, and tried in
random order, so that a sweep that is stopped has seen every step. Each point is two forks of this process, of a second
or less. Renames are taken to survive a power cut.
"""

import argparse
import builtins
import collections
import contextlib
import errno
import importlib
import io
import os
import pickle
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported: forks of a process with threads could hang
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import torch._dynamo  # noqa: E402, F401 (the first optimizer imports it)
from pipeline import no_pictures  # noqa: E402
from tiny import call_script, make_all, names, scripts, tree  # noqa: E402

import data_augmentation  # noqa: E402
import pregenerate_training_data  # noqa: E402
from transformer import corpus, drawing, evaluation  # noqa: E402

WAYS = ("kill", "lost", "ENOSPC", "EIO")
KILLED = 137
# So little data is done between two saved states; these let the data stages save many of them.
OFTEN = (
    (data_augmentation, "CHUNK_ROWS", 10),
    (pregenerate_training_data, "SAVE_SECONDS", 0),
    (pregenerate_training_data, "CHUNK_SENTENCES", 20),
    (corpus, "BLOCK_BYTES", 400),
    (evaluation, "REPETITIONS", 4),
    (evaluation, "RESAMPLES", 10),
)
MORE = {"general": ["--num_train_epochs", 2, "--eval_step", 3], "prediction": ["--num_train_epochs", 1]}
MORE |= {"packed": ["--packed"], "intermediate": ["--num_train_epochs", 1], "finetune": ["--num_train_epochs", 1]}
STEPS = ("augment", "pregenerate", "packed", "general", "finetune", "intermediate", "prediction", "evaluate", "predict")


class Run(NamedTuple):
    """How a run in a process of its own ended."""

    status: int
    error: str = ""
    operations: tuple = ()  # (kind, file) of each; none of a process that was killed
    imported: tuple = ()  # names of modules


class Points:
    """Counts the operations on the files of `folder`, and lets the one with the number `at` go wrong."""

    def __init__(self, folder, way, at):
        self.folder, self.way, self.at, self.operations = str(folder), way, at, []
        self.synced = {}  # {inode of a written file: its bytes that are on the disk for certain}

    def reach(self, kind, name):
        self.operations.append((kind, os.path.basename(str(name))))
        if len(self.operations) - 1 != self.at:
            return
        if self.way in ("kill", "lost"):
            if self.way == "lost":
                self.lose()
            os._exit(KILLED)
        code = getattr(errno, self.way)
        raise OSError(code, os.strerror(code), *([str(name)] if kind in ("open", "rename") else []))

    def lose(self):
        for path in Path(self.folder).rglob("*"):
            found = path.stat()
            if path.is_file() and found.st_size > self.synced.get(found.st_ino, found.st_size):
                os.truncate(path, self.synced[found.st_ino])

    @contextlib.contextmanager
    def watching(self):
        """Watch what is written through Python's own files."""
        points, usual, fsync, replace = self, open, os.fsync, os.replace

        class Raw(io.FileIO):
            def write(self, data):
                points.reach("write", self.name)
                return super().write(data)

        def watched_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **rest):
            inside = not isinstance(file, int) and os.path.abspath(file).startswith(points.folder)
            if not inside or not set(mode) & {*"wax+"}:
                return usual(file, mode, buffering, encoding, errors, newline, *more, **rest)
            points.reach("open", file)
            raw = Raw(file, mode.replace("b", ""))
            points.synced.setdefault(os.fstat(raw.fileno()).st_ino, os.fstat(raw.fileno()).st_size)
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        def watched_fsync(number):
            points.reach("sync", os.readlink(f"/proc/self/fd/{number}"))
            fsync(number)
            points.synced[os.fstat(number).st_ino] = os.fstat(number).st_size

        def watched_replace(source, target):
            points.reach("rename", target)
            replace(source, target)

        with (
            mock.patch.object(builtins, "open", watched_open),
            mock.patch.object(io, "open", watched_open),
            mock.patch.object(os, "fsync", watched_fsync),
            mock.patch.object(os, "replace", watched_replace),
        ):
            yield


def command(folder, name):
    step = {"packed": "pregenerate", "predict": "evaluate"}.get(name, name)
    script, flags = scripts(folder)[step]
    flags = [*flags, *MORE.get(name, [])]
    return script, ["--do_predict" if name == "predict" and flag == "--do_eval" else flag for flag in flags]


def run(folder, name, way=None, at=None):
    """A step in a fork of this process; at operation number `at` something goes wrong in this way."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        points, known = Points(folder, way, at), {*sys.modules}
        try:
            script, flags = command(folder, name)
            with points.watching():
                process = call_script(script, *flags)
            ended = process.returncode, process.stderr
        except BaseException:
            ended = 1, traceback.format_exc()
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump((*ended, tuple(points.operations), tuple({*sys.modules} - known)), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return Run(*pickle.loads(told)) if told else Run(KILLED)


def everything(folder):
    """Every file's bytes, as `tiny.tree`, and records with their commands; of reports, which tell times, the names."""
    records = {path.name: path.read_bytes() for path in folder.rglob("*run.json")}
    return {
        **tree(folder),
        **records,
        "reports": {name for name in names(folder) if re.search("report.(md|json)$", name)},
    }


def faults_at(folder, before, expected, name, way, at):
    """What goes wrong at one point beyond what should: texts."""
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    found, faults = run(folder, name, way, at), []
    if way in ("kill", "lost"):
        faults += [] if found.status == KILLED else [f"was not killed: {found}"]
    elif found.status and (found.status != 2 or found.error.count("\n") != 1):
        faults.append(f"status {found.status}: {found.error}")
    again = run(folder, name)
    if again.status:
        faults.append(f"run again: status {again.status}: {again.error}")
    elif (after := everything(folder)) != expected:
        differing = {file for file in {*after, *expected} if after.get(file) != expected.get(file)}
        faults.append(f"other bytes: {sorted(differing)}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1100, help="in all, see above")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this long")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        for module, attribute, value in OFTEN:
            stack.enter_context(mock.patch.object(module, attribute, value))
        stack.enter_context(no_pictures())
        place = stack.enter_context(tempfile.TemporaryDirectory())
        return sweep(Path(place), args)


def sweep(place, args):
    """Run the points and print the table; the exit status."""
    folder, rng, stop = place / "run", random.Random(args.seed), time.monotonic() + 60 * args.minutes
    known = undisturbed(place, folder)
    points = {name: [(name, at, way) for at in range(len(known[name][2])) for way in WAYS] for name in args.steps}
    drawn = evenly(points, args.points, rng)
    print(f"{sum(map(len, points.values()))} points, of which {len(drawn)} are drawn\n", flush=True)
    tried, faulty, seconds = collections.Counter(), collections.Counter(), collections.Counter()
    for name, at, way in drawn:
        if (started := time.monotonic()) > stop:
            break
        before, expected, operations = known[name]
        faults = faults_at(folder, before, expected, name, way, at)
        for fault in faults:
            print(f"{name}, {way} at {operations[at]} (number {at}): {fault}", flush=True)
        tried[name] += 1
        faulty[name] += bool(faults)
        seconds[name] += time.monotonic() - started
    print("| step | operations | points | with a fault | seconds |\n|---|---|---|---|---|")
    for name in args.steps:
        print(f"| {name} | {len(known[name][2])} | {tried[name]} | {faulty[name]} | {seconds[name]:.0f} |")
    print(f"| all | | {tried.total()} | {faulty.total()} | {seconds.total():.0f} |")
    return 1 if faulty.total() else 0


def undisturbed(place, folder):
    """Run all steps in order. Returns {step: (a copy of the folder before it, everything after it, its operations)}."""
    make_all(folder)
    drawing.drawable("a")  # what it looks up is kept, for the forks too
    known = {}
    for name in STEPS:
        if name == "packed":
            shutil.move(folder / "2", place / "2")
        before = shutil.copytree(folder, place / f"before_{name}")
        done = run(folder, name)
        if done.status:
            raise SystemExit(f"{name} ended with status {done.status}:\n{done.error}")
        known[name] = before, everything(folder), done.operations
        for module in done.imported:  # else every later fork imports them again
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        if name == "packed":
            shutil.rmtree(folder / "2")
            shutil.move(place / "2", folder / "2")
    return known


def evenly(points, most, rng):
    """`most` of the points, {step: points}, in random order: from each step as many, or all that it has."""
    drawn = []
    for number, each in enumerate(sorted(points.values(), key=len)):
        drawn += rng.sample(each, min(len(each), (most - len(drawn)) // (len(points) - number)))
    return rng.sample(drawn, len(drawn))


if __name__ == "__main__":
    sys.exit(main())
