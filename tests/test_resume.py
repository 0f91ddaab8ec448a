"""A script that was killed or stopped goes on, with the same command, to the same bytes.

By default a script ends inside this process, at a place that the test chooses; the slow tests kill processes.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
from pipeline import OUTPUT, SHORT, Killed, call, clear, command
from tiny import ROOT, names, tree

import data_augmentation
import pregenerate_training_data
from transformer.optimization import BertAdam
from transformer.training import TrainingRun

KILLS, ATTEMPTS, SECONDS = 10, 60, 400  # so many kills are wanted, in so many attempts and so long at most


def exists(name):
    return lambda folder: (folder / name).exists()


def has_progress(folder):
    with contextlib.suppress(OSError):
        return '"progress"' in (folder / "glue/SST-2/train_aug.run.json").read_text()


# What tells that a script is in the middle.
MIDDLE = {
    "augment": has_progress,
    "pregenerate": exists("2/epoch_3_metrics.json"),
    "general": exists("3/step_20_pytorch_model.bin"),
    "finetune": exists("teacher/SST-2/pytorch_model.bin"),
    "intermediate": exists("4/pytorch_model.bin"),
    "prediction": exists("5/pytorch_model.bin"),
}


def start(folder, name, *flags):
    """A step of the pipeline as a process of its own."""
    script, usual = command(folder, name)
    arguments = [sys.executable, str(ROOT / script), *map(str, [*usual, *flags])]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_and_signal(folder, name, number, *flags, seconds=60):
    """Start a step, send it a signal when it is in the middle, and wait for its end; its exit status."""
    process = start(folder, name, *flags)
    limit = time.monotonic() + seconds
    while not MIDDLE[name](folder):
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            printed, _ = process.communicate()
            pytest.fail(f"{name}: not in the middle after {seconds} seconds, or ended before:\n{printed}")
        time.sleep(0.001)
    process.send_signal(number)
    process.communicate(timeout=60)  # returns when nobody holds the script's output open any more
    return process.returncode


def make_whole(copy, pipeline, name):
    """Give augmentation its whole output back, which it makes again; the other steps train on the short one."""
    if name == "augment":
        shutil.copy(pipeline.folder / "glue/SST-2/train_aug.tsv", copy / "glue/SST-2/train_aug.tsv")


# --- killed


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "pregenerate")) for name in MIDDLE]
)
def test_a_killed_script_started_again_ends_with_the_same_bytes(pipeline, copy, name):
    make_whole(copy, pipeline, name)
    expected = tree(copy)
    clear(copy, name)
    assert start_and_signal(copy, name, signal.SIGKILL) == -signal.SIGKILL
    assert {file for file, data in tree(copy).items() if expected.get(file) != data}, "it was done already"
    assert call(copy, name).returncode == 0
    assert tree(copy) == expected


class Replacements:
    """Takes the place of `os.replace`: counts its calls, and ends the process (as it were) instead of one of them."""

    def __init__(self, killed_at=None):
        self.calls, self.killed_at, self.replace = 0, killed_at, os.replace

    def __call__(self, *paths):
        if self.calls == self.killed_at:
            raise Killed
        self.calls += 1
        self.replace(*paths)


def run_anew(folder, name):
    """Take away what a step of SHORT left, with everything that was computed for it."""
    clear(folder, name)
    kept = {file for file in names(folder) if "_cache" in file or file.endswith(".npy")}
    for file in names(folder) & {*kept, *(f"3/step_{step}_pytorch_model.bin" for step in (3, 4))}:
        (folder / file).unlink()


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["middle", "everywhere"])
@pytest.mark.parametrize("way", [*MIDDLE, "packed"])
def test_wherever_a_script_is_killed_between_two_files_it_ends_the_same(copy, way, every, monkeypatch):
    name = "pregenerate" if way == "packed" else way
    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 100)
    monkeypatch.setattr(pregenerate_training_data, "SAVE_SECONDS", 0)
    monkeypatch.setattr(pregenerate_training_data, "CHUNK_SENTENCES", 20)
    monkeypatch.setattr("transformer.corpus.BLOCK_BYTES", 400)
    run_anew(copy, name)
    with mock.patch("os.replace", Replacements()) as counted:
        assert call(copy, name, *SHORT[way]).returncode == 0
    expected = tree(copy)
    assert counted.calls >= 4
    for number in range(0, counted.calls, 1 if counted.calls < 12 else 2) if every else [counted.calls // 2]:
        run_anew(copy, name)
        with mock.patch("os.replace", Replacements(number)), pytest.raises(Killed):
            call(copy, name, *SHORT[way])
        assert call(copy, name, *SHORT[way]).returncode == 0
        assert tree(copy) == expected, number


@pytest.mark.slow
def test_a_failed_write_or_lost_data_anywhere_loses_nothing():
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "faults.py"), "--points", "40"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["augment", "pregenerate", "packed", "general", "prediction"])
def test_ten_kills_at_random_moments_lose_nothing(pipeline, copy, way):
    flags = ["--num_workers", 1, "--packed"] if way == "packed" else []
    name = "pregenerate" if way == "packed" else way
    make_whole(copy, pipeline, name)

    def clear_all():
        clear(copy, name)
        for file in names(copy) - names(pipeline.folder):
            (copy / file).unlink(missing_ok=True)

    clear_all()
    started = time.monotonic()
    assert call(copy, name, *flags).returncode == 0
    expected, seconds, rng, kills = tree(copy), time.monotonic() - started, random.Random(11), 0
    clear_all()
    for _ in range(ATTEMPTS):
        process = start(copy, name, *flags)
        process.stdout.readline()  # it has imported what it needs
        time.sleep(rng.uniform(0, 0.4 * seconds))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            assert tree(copy) == expected
            clear_all()
        if kills == KILLS or time.monotonic() > started + SECONDS:
            break
    assert kills == KILLS, f"{kills} kills in {time.monotonic() - started:.0f} seconds"
    assert call(copy, name, *flags).returncode == 0
    assert tree(copy) == expected


def test_no_worker_outlives_a_killed_script(copy):
    clear(copy, "pregenerate")
    assert start_and_signal(copy, "pregenerate", signal.SIGKILL, "--num_workers", 3) == -signal.SIGKILL


def end_after_the_file(patch, folder, name):
    """End the process (as it were) as soon as the file is there that tells that a step is in the middle."""
    replace = os.replace

    def replace_and_end(*paths):
        replace(*paths)
        if MIDDLE[name](folder):
            raise Killed

    patch.setattr(os, "replace", replace_and_end)


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_the_teacher_s_logits_are_computed_once_and_kept_over_a_kill(copy, torn):
    expected = tree(copy)
    clear(copy, "prediction")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        end_after_the_file(patch, copy, "prediction")
        call(copy, "prediction")
    logits = copy / "5" / "teacher_logits.npy"
    if torn:
        os.truncate(logits, logits.stat().st_size // 2)
    found = call(copy, "prediction")
    assert found.returncode == 0 and ("teacher's logits of" in found.stdout + found.stderr) == torn
    assert tree(copy) == expected  # the file of logits is gone


def test_a_student_started_from_its_teacher_goes_on_after_a_kill_without_starting_again(copy):
    flags = ["--init_student", "teacher", "--overwrite_output", "--num_train_epochs", 6, "--eval_step", 4]
    assert "student's weights from the teacher's" in call(copy, "general", *flags).stdout
    expected = tree(copy)
    run = TrainingRun.evaluate_and_save
    with mock.patch.object(TrainingRun, "evaluate_and_save", autospec=True) as saved:
        saved.side_effect = lambda self: run(self) if self.step <= 8 else die()
        with pytest.raises(Killed):
            call(copy, "general", *flags)
    process = call(copy, "general", *flags[:2], *flags[3:])
    assert process.returncode == 0 and "student's weights from" not in process.stdout
    assert tree(copy) == expected


def die():
    raise Killed


# --- stopped by a signal


def signal_after_updates(patch, number, updates=27):
    """Send this process a signal after so many updates of the weights."""
    update, count = BertAdam.step, 0

    def update_and_signal(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == updates:
            signal.raise_signal(number)
        return update(self, *args, **kwargs)

    patch.setattr(BertAdam, "step", update_and_signal)


@pytest.mark.parametrize("process", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["called", "process"])
@pytest.mark.parametrize(
    "name, number, status", [("general", signal.SIGTERM, 143), ("intermediate", signal.SIGINT, 130)]
)
def test_a_signal_saves_and_the_same_command_goes_on(copy, name, number, status, process):
    expected = tree(copy)
    clear(copy, name)
    if process:
        assert start_and_signal(copy, name, number) == status
    else:
        with pytest.MonkeyPatch.context() as patch:
            signal_after_updates(patch, number)
            assert call(copy, name).returncode == status
    log = copy / OUTPUT[name] / "log.txt"
    [stopped] = re.findall(r"stopped at step (\d+); the same command goes on", log.read_text())
    assert process or stopped == "27"
    assert call(copy, name).returncode == 0
    assert f"going on from step {stopped} of " in log.read_text()  # not from the last evaluation: from where it stopped
    assert tree(copy) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, number, status",
    [
        ("pregenerate", signal.SIGTERM, 143),
        ("augment", signal.SIGINT, 130),
        pytest.param("pregenerate", signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param("augment", signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_data_script_stopped_by_a_signal_goes_on(pipeline, copy, name, number, status):
    make_whole(copy, pipeline, name)
    expected = tree(copy)
    clear(copy, name)
    assert start_and_signal(copy, name, number) == status
    assert call(copy, name).returncode == 0
    assert tree(copy) == expected
