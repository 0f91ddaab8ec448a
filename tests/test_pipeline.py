"""The scripts as a user runs them: what each leaves, what happens when one is killed, repeated, or asked otherwise."""

import contextlib
import importlib.util
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch
from tiny import ROOT, call_script, make_all, make_sst2, names, run_script, scripts, tree

import data_augmentation
import general_distill
import pregenerate_training_data
import task_distill
from transformer import drawing
from transformer.file_utils import atomic_write
from transformer.modeling import TinyBertForSequenceClassification
from transformer.tokenization import BertTokenizer
from transformer.training import TrainingRun

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
REPORT = {"report.md", *(["report.png"] if DRAWN else [])}
# Long enough for a signal to arrive in the middle.
LONGER = {
    "general": ["--num_train_epochs", 40, "--eval_step", 20, "--max_steps", 80],
    "finetune": ["--num_train_epochs", 2.3, "--eval_step", 20],
    "intermediate": ["--num_train_epochs", 8, "--eval_step", 10],
    "prediction": ["--num_train_epochs", 8, "--eval_step", 10],
    "pregenerate": ["--epochs_to_generate", 16, "--num_workers", 2],
}
LEAVES = {
    "augment": {"glue/SST-2/train_aug.tsv", "glue/SST-2/train_aug.run.json"},
    "pregenerate": {"2/run.json"}
    | {f"2/epoch_{epoch}{end}" for epoch in range(16) for end in (".json", "_metrics.json")},
    "general": {f"3/{name}" for name in MODEL}
    | {f"3/step_{step}_pytorch_model.bin" for step in (60, 80)}
    | {f"2/epoch_{epoch}_cache{end}" for epoch in range(16) for end in (".json", "_ids.npy", "_sequences.npy")},
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


def command(folder, name):
    script, flags = scripts(folder)[name]
    aside = ["--output_dir", folder / "evaluated"] if name == "evaluate" else []  # its results are the same file's name
    return script, [*flags, *LONGER.get(name, []), *aside]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """All scripts in order on tiny data: (folder, {script: the files it left}, {script: its output})."""
    folder = make_all(tmp_path_factory.mktemp("pipeline"))
    make_sst2(folder / "glue" / "SST-2", train=650)  # six chunks of rows for augmentation
    left, printed = {}, {}
    for name in scripts(folder):
        before = names(folder)
        script, flags = command(folder, name)
        if name == "intermediate":  # the rest trains on less
            shorten(folder / "glue" / "SST-2" / "train_aug.tsv", folder / "whole_aug.tsv")
            before.add("whole_aug.tsv")
        process = run_script(script, *flags)
        assert before <= names(folder)
        left[name], printed[name] = names(folder) - before, process.stdout
        assert process.stderr == "", process.stderr
    shutil.move(folder / "whole_aug.tsv", folder / "glue" / "SST-2" / "train_aug.tsv")
    return folder, left, printed


def shorten(path, aside, rows=120):
    """Keep the first rows of a file; the whole of it goes aside."""
    lines = path.read_bytes().splitlines(keepends=True)
    os.replace(path, aside)
    path.write_bytes(b"".join(lines[:rows]))


@pytest.fixture
def copy(pipeline, tmp_path):
    """A copy of the finished pipeline that a test may change, with the short augmented file."""
    folder = shutil.copytree(pipeline[0], tmp_path / "copy")
    shorten(folder / "glue" / "SST-2" / "train_aug.tsv", tmp_path / "whole")
    return folder


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch):
    """The scripts called in this process measure speeds less well."""
    monkeypatch.setattr("transformer.evaluation.SECONDS", 0.05)


def call(folder, name, *flags):
    script, usual = command(folder, name)
    return call_script(script, *usual, *flags)


def clear(folder, name):
    """Take away what a script left, for it to run again."""
    for file in LEAVES[name]:
        (folder / file).unlink()
    if name == "pregenerate":
        for path in folder.glob("2/*_cache*"):
            path.unlink()


@pytest.mark.parametrize("name", LEAVES)
def test_each_script_leaves_exactly_its_files(pipeline, name):
    assert pipeline[1][name] == LEAVES[name]


def test_each_script_names_the_command_of_the_next_stage(pipeline):
    hints = {name: re.findall(r"next: python (.*)", text) for name, text in pipeline[2].items()}
    assert hints.pop("evaluate") == []
    scripts_named = {name: [hint.split()[0] for hint in found] for name, found in hints.items()}
    assert scripts_named == {
        "augment": ["pregenerate_training_data.py"],
        "pregenerate": ["general_distill.py"],
        "general": ["task_distill.py"],
        "finetune": ["general_distill.py"],
        "intermediate": ["task_distill.py"],
        "prediction": ["task_distill.py"],
    }
    assert " --pred_distill " in hints["intermediate"][0] and " --do_eval " in hints["prediction"][0]
    assert f"--student_model {pipeline[0] / '4'}" in hints["intermediate"][0]


@pytest.mark.parametrize(
    "name, loss", [("general", "rep_loss"), ("intermediate", "att_loss"), ("prediction", "cls_loss")]
)
def test_the_student_comes_nearer_to_its_teacher(pipeline, name, loss):
    losses = [float(value) for value in re.findall(rf"^.* step \d+/\d+ .*{loss} ([\d.]+)", pipeline[2][name], re.M)]
    assert len(losses) >= 2 and losses[-1] < losses[0]


def test_the_evaluation_prints_teacher_beside_student(pipeline):
    table = pipeline[2]["evaluate"]
    assert re.search(r"^parameters +[\d,]+ +[\d,]+ +[\d.]+x smaller$", table, re.M)
    line = r"^dev acc +([\d.]+) +([\d.]+) +([\d.]+)% of the teacher's$"
    teacher, student, share = re.search(line, table, re.M).groups()
    assert float(share) == pytest.approx(100 * float(student) / float(teacher), abs=0.1)
    for size in (1, 32):
        for row in (
            f"latency p50, batch of {size}, ms",
            f"latency p95, batch of {size}, ms",
            f"sentences per second, batch of {size}",
        ):
            assert re.search(rf"^{row} +[\d.,]+ +[\d.,]+   [\d.]+x faster$", table, re.M)
    assert (pipeline[0] / "evaluated" / "eval_results.txt").read_text().startswith(f"acc = {student}"[:9])


# --- stopped and started again


def start(folder, name, marker, number):
    """Run a script until the file `marker` tells that it is in the middle, then send it a signal; its exit status."""
    script, flags = command(folder, name)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    limit = time.monotonic() + 60
    while not marker(folder) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.001)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


def exists(name):
    return lambda folder: (folder / name).exists()


def has_progress(folder):
    with contextlib.suppress(OSError):
        return '"progress"' in (folder / "glue/SST-2/train_aug.run.json").read_text()


MIDDLE = {
    "augment": has_progress,
    "pregenerate": exists("2/epoch_3_metrics.json"),
    "general": exists("3/step_20_pytorch_model.bin"),
    "finetune": exists("teacher/SST-2/pytorch_model.bin"),
    "intermediate": exists("4/pytorch_model.bin"),
    "prediction": exists("5/pytorch_model.bin"),
}


@pytest.mark.parametrize("name", MIDDLE)
def test_a_killed_script_started_again_ends_with_the_same_bytes(pipeline, copy, name, tmp_path):
    if name == "augment":
        shutil.copy(pipeline[0] / "glue/SST-2/train_aug.tsv", copy / "glue/SST-2/train_aug.tsv")
    expected = tree(copy)
    clear(copy, name)
    assert start(copy, name, MIDDLE[name], signal.SIGKILL) == -signal.SIGKILL
    assert {file for file, data in tree(copy).items() if expected.get(file) != data}, "it was done already"
    assert call(copy, name).returncode == 0
    assert tree(copy) == expected


STOPS = [("general", signal.SIGTERM, 143), ("intermediate", signal.SIGINT, 130)]


@pytest.mark.parametrize("name, number, status", STOPS)
def test_a_signal_saves_and_the_same_command_goes_on(copy, name, number, status):
    expected = tree(copy)
    clear(copy, name)
    assert start(copy, name, MIDDLE[name], number) == status
    log = copy / OUTPUT[name] / "log.txt"
    [stopped] = re.findall(r"stopped at step (\d+); the same command goes on", log.read_text())
    assert call(copy, name).returncode == 0
    assert f"going on from step {stopped} of " in log.read_text()  # not from the last evaluation: from where it stopped
    assert tree(copy) == expected


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("name", ["pregenerate", "augment"])
def test_a_data_script_stopped_by_a_signal_goes_on(pipeline, copy, name, number, status):
    if name == "augment":
        shutil.copy(pipeline[0] / "glue/SST-2/train_aug.tsv", copy / "glue/SST-2/train_aug.tsv")
    expected = tree(copy)
    clear(copy, name)
    assert start(copy, name, MIDDLE[name], number) == status
    assert call(copy, name).returncode == 0
    assert tree(copy) == expected


@pytest.mark.parametrize("torn", [False, True])
def test_the_teacher_s_logits_are_computed_once_and_kept_over_a_kill(copy, torn):
    expected = tree(copy)
    clear(copy, "prediction")
    assert start(copy, "prediction", MIDDLE["prediction"], signal.SIGKILL) == -signal.SIGKILL
    logits = copy / "5" / "teacher_logits.npy"
    if torn:
        os.truncate(logits, logits.stat().st_size // 2)
    found = call(copy, "prediction")
    assert found.returncode == 0 and ("teacher's logits of" in found.stdout + found.stderr) == torn
    assert tree(copy) == expected  # the file of logits is gone


def test_two_processes_distil_a_task_as_one(copy):
    for student in ("3", "4"):  # dropout draws for the batch of a process
        config = json.loads((copy / student / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (copy / student / "config.json").write_text(json.dumps(config))
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name in ("intermediate", "prediction"):
        script, flags = command(copy, name)
        flags = [*flags, "--train_batch_size", 13, "--max_steps", 11, "--eval_step", 4, "--no_cuda"]
        one, two = copy / f"one_{name}", copy / f"two_{name}"
        run_script(script, *flags, "--output_dir", one)
        process = subprocess.run(
            [*several, str(ROOT / script), *map(str, flags), "--output_dir", str(two)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        assert names(one) == names(two)
        logged = [
            [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
            for folder in (one, two)
        ]
        for entry, same in zip(*logged, strict=True):
            for kind in {"losses", "evaluation"} & {*entry}:
                assert same[kind] == pytest.approx(entry[kind], rel=1e-5, abs=1e-6), name
        states = [torch.load(folder / "pytorch_model.bin", weights_only=True) for folder in (one, two)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)


def write_no_picture(path, panels):
    """In place of `drawing.save_panels`, in a hundredth of its time."""
    with atomic_write(path, "wb") as file:
        file.write(b"a picture")
    return True


class Killed(BaseException):
    """Stands for the end of the process, which no handler sees."""


SHORT = {
    "general": ["--num_train_epochs", 2, "--eval_step", 3],
    "finetune": ["--limit", 30, "--eval_step", 4],
    "intermediate": ["--num_train_epochs", 1, "--eval_step", 4],
    "prediction": ["--num_train_epochs", 1, "--eval_step", 4],
    "pregenerate": ["--epochs_to_generate", 3, "--num_workers", 1],
    "augment": [],
    "packed": ["--epochs_to_generate", 2, "--packed"],
}


@pytest.mark.parametrize("way", [*MIDDLE, "packed"])
def test_wherever_a_script_is_killed_between_two_files_it_ends_the_same(copy, way, monkeypatch):
    name = "pregenerate" if way == "packed" else way
    clear(copy, name)
    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 100)
    monkeypatch.setattr(pregenerate_training_data, "SAVE_SECONDS", 0)
    monkeypatch.setattr(pregenerate_training_data, "CHUNK_SENTENCES", 20)
    monkeypatch.setattr("transformer.corpus.BLOCK_BYTES", 400)
    if DRAWN:
        monkeypatch.setattr(drawing, "save_panels", write_no_picture)
    assert call(copy, name, *SHORT[way]).returncode == 0
    expected, replace, calls = tree(copy), os.replace, 0

    def counted(*paths):
        nonlocal calls
        calls += 1
        replace(*paths)

    def killed_at(number):
        def replace_or_die(*paths):
            nonlocal number
            number -= 1
            if number < 0:
                raise Killed
            replace(*paths)

        return replace_or_die

    def run_anew():
        caches = {file for file in names(copy) if "_cache" in file or file.endswith(".npy")}
        for file in names(copy) & {*LEAVES[name], *caches, *(f"3/step_{step}_pytorch_model.bin" for step in (3, 4))}:
            (copy / file).unlink()

    run_anew()
    monkeypatch.setattr(os, "replace", counted)
    assert call(copy, name, *SHORT[way]).returncode == 0 and tree(copy) == expected
    assert calls >= 4
    for number in range(0, calls, 1 if calls < 12 else 2):
        run_anew()
        monkeypatch.setattr(os, "replace", killed_at(number))
        with pytest.raises(Killed):
            call(copy, name, *SHORT[way])
        monkeypatch.setattr(os, "replace", replace)
        assert call(copy, name, *SHORT[way]).returncode == 0
        assert tree(copy) == expected, number


@pytest.mark.parametrize("name", ["augment", "pregenerate", "packed", "general", "prediction"])
def test_ten_kills_at_random_moments_lose_nothing(pipeline, copy, name):
    flags = ["--num_workers", 1, "--packed"] if name == "packed" else []
    name = "pregenerate" if name == "packed" else name
    if name == "augment":
        shutil.copy(pipeline[0] / "glue/SST-2/train_aug.tsv", copy / "glue/SST-2/train_aug.tsv")

    def run_anew():
        caches = {file for file in names(copy) if name == "pregenerate" and "_cache" in file}
        for file in (names(copy) - names(pipeline[0])) | LEAVES[name] | caches:
            (copy / file).unlink(missing_ok=True)

    run_anew()
    started = time.monotonic()
    assert call(copy, name, *flags).returncode == 0
    expected, seconds, rng, kills = tree(copy), time.monotonic() - started, random.Random(11), 0
    run_anew()
    script, usual = command(copy, name)
    while kills < 10:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *map(str, [*usual, *flags])],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        process.stdout.readline()  # it has imported what it needs
        time.sleep(rng.uniform(0, 0.4 * seconds))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            assert tree(copy) == expected
            run_anew()
    assert call(copy, name, *flags).returncode == 0
    assert tree(copy) == expected


def test_no_worker_outlives_a_killed_script(copy):
    clear(copy, "pregenerate")
    script, flags = command(copy, "pregenerate")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, flags), "--num_workers", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not MIDDLE["pregenerate"](copy) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=20)  # returns when nobody holds the script's output open any more
    assert process.returncode == -signal.SIGKILL


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


def test_the_ways_to_choose_layers_and_losses_run_in_both_scripts(copy):
    ways = ["--layer_map", "2,3", "--attention_loss", "relations", "--attention_weight", 0.5, "--hidden_weight", 2]
    assert call(copy, "general", *ways, "--max_steps", 3, "--overwrite_output").returncode == 0
    assert call(copy, "intermediate", *ways, "--max_steps", 3, "--overwrite_output").returncode == 0
    process = call(copy, "intermediate", "--layer_map", "2,9", "--overwrite_output")
    assert process.returncode == 2 and "2 numbers from 1 to 4" in process.stderr


# --- run again


@pytest.mark.parametrize("name", MIDDLE)
def test_a_second_run_says_that_it_was_finished_and_changes_nothing(copy, pipeline, name):
    if name == "augment":
        shutil.copy(pipeline[0] / "glue/SST-2/train_aug.tsv", copy / "glue/SST-2/train_aug.tsv")
    before = tree(copy)
    logs = {path: path.read_bytes() for path in copy.rglob("log.txt")}
    process = call(copy, name)
    assert process.returncode == 0 and "finished before" in process.stdout
    assert tree(copy) == before and {path: path.read_bytes() for path in copy.rglob("log.txt")} == logs


@pytest.mark.parametrize("name", MIDDLE)
def test_other_flags_are_refused_and_the_difference_is_named(copy, name):
    before = tree(copy)
    process = call(copy, name, "--seed", 5)
    assert process.returncode == 2
    assert "seed was 42, is now 5" in process.stderr and "--overwrite_output" in process.stderr
    assert tree(copy) == before


def test_another_input_is_refused_and_named(copy):
    with open(copy / "corpus.txt", "a", encoding="utf-8") as file:
        file.write("\nthe film is warm .\n")
    assert "train_corpus was" in call(copy, "pregenerate").stderr
    (copy / "glue" / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nthe film\t1\n")
    assert "dev.tsv was" in call(copy, "intermediate").stderr
    shutil.copy(copy / "3" / "pytorch_model.bin", copy / "teacher" / "SST-2" / "pytorch_model.bin")
    assert "teacher_model was" in call(copy, "prediction").stderr


@pytest.mark.parametrize("name", ["augment", "pregenerate", "general", "prediction"])
def test_overwrite_output_replaces_what_is_there(copy, name):
    before, flags = tree(copy), [*SHORT[name], "--seed", 5, "--overwrite_output"]
    assert call(copy, name, *flags).returncode == 0
    after = tree(copy)
    key = {"augment": "glue/SST-2/train_aug.tsv", "pregenerate": "2/epoch_0.json"}
    key = key.get(name, f"{OUTPUT[name]}/pytorch_model.bin")
    assert after[key] != before[key]
    gone = set(before) - set(after)
    if name == "pregenerate":  # of the old epochs none is left
        assert gone == {f"2/epoch_{epoch}{end}" for epoch in range(3, 16) for end in (".json", "_metrics.json")}
    elif name == "general":
        assert gone == {f"3/step_{step}_pytorch_model.bin" for step in (60, 80)}
    else:
        assert not gone


def test_a_moved_folder_and_a_relative_path_are_the_same_input(copy, monkeypatch):
    monkeypatch.chdir(copy)
    flags = ["--data_dir", "glue/SST-2/", "--teacher_model", "teacher", "--student_model", "./3", "--output_dir", "4"]
    process = call(copy, "intermediate", *flags)
    assert process.returncode == 0 and "finished before" in process.stdout
    process = call(copy, "pregenerate", "--bert_model", "teacher", "--output_dir", "./2/", "--num_workers", 1)
    assert process.returncode == 0 and "finished before" in process.stdout


# --- task distillation's ways


def test_the_two_task_steps_also_run_in_the_other_order(copy):
    for name, student, output in (("prediction", "3", "mid"), ("intermediate", "mid", "out")):
        flags = ["--student_model", copy / student, "--output_dir", copy / output, "--num_train_epochs", 1]
        assert call(copy, name, *flags).returncode == 0
    assert names(copy / "out") == names(copy / "mid") - REPORT == MODEL | {"eval_results.txt"}
    assert "rep_loss = " in (copy / "out" / "eval_results.txt").read_text()


def test_a_teacher_is_fine_tuned_once_and_used_again(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    out = ["--num_train_epochs", 1, "--output_dir"]
    first = call(copy, "intermediate", *out, copy / "mid")
    assert first.returncode == 0, first.stderr
    assert "fine-tuning it first" in first.stdout
    assert "local_rank" not in first.stdout and len(re.findall(r"task_name .*command line", first.stdout)) == 2
    assert {f"teacher/SST-2/{name}" for name in names(copy / "teacher/SST-2")} == LEAVES["finetune"]
    before = tree(copy / "teacher")
    second = call(copy, "prediction", *out, copy / "out")
    assert second.returncode == 0 and "fine-tuning" not in second.stdout
    assert tree(copy / "teacher") == before
    for process in (first, second):
        lines = process.stdout.splitlines()
        told = next(index for index, line in enumerate(lines) if "teacher on dev: acc" in line)
        assert told < next(index for index, line in enumerate(lines) if re.search("att_loss|cls_loss", line))


def test_the_fine_tuned_teacher_keeps_the_settings_of_fine_tuning(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    settings = task_distill.parse_args(["--do_finetune", "--num_train_epochs", "1"])
    assert settings.learning_rate == 3e-5
    assert call(copy, "intermediate", "--max_steps", 2, "--output_dir", copy / "mid").returncode == 0
    record = (copy / "teacher" / "SST-2" / "run.json").read_text()
    assert '"learning_rate": 3e-05' in record  # not the step's own 3e-3


def test_no_finetune_refuses(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    process = call(copy, "intermediate", "--no_finetune", "--output_dir", copy / "mid")
    assert process.returncode == 2 and "no classifier for SST-2" in process.stderr
    assert not (copy / "teacher" / "SST-2").exists()


def test_a_teacher_from_a_short_run_is_not_used_by_a_full_one(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    assert call(copy, "intermediate", "--max_steps", 2, "--output_dir", copy / "short").returncode == 0
    again = call(copy, "prediction", "--max_steps", 2, "--output_dir", copy / "short_out")
    assert "fine-tuning" not in again.stdout  # another short run does use it
    full = call(copy, "intermediate", "--num_train_epochs", 1, "--output_dir", copy / "full")
    assert full.returncode == 0 and "fine-tuning the teacher again" in full.stdout
    assert "max_steps" not in (copy / "teacher" / "SST-2" / "run.json").read_text()


def test_a_fine_tuning_that_was_stopped_is_finished_by_the_next_step(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    usual = ["--teacher_model", copy / "teacher", "--data_dir", copy / "glue" / "SST-2", "--max_seq_length", 31]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_distill, "complete", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            call_script("task_distill.py", "--do_finetune", *usual)
    assert '"finished": false' in (copy / "teacher" / "SST-2" / "run.json").read_text()
    process = call(copy, "intermediate", "--max_seq_length", 31, "--num_train_epochs", 1, "--output_dir", copy / "mid")
    assert process.returncode == 0, process.stderr
    assert '"finished": true' in (copy / "teacher" / "SST-2" / "run.json").read_text()


def test_do_predict_writes_the_submission(copy):
    flags = ["--do_predict", "--student_model", copy / "5", "--output_dir", copy / "predicted"]
    process = call(copy, "prediction", *flags)
    assert process.returncode == 0, process.stderr
    assert names(copy / "predicted") == {"SST-2.tsv"}
    lines = (copy / "predicted" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and [line.split("\t")[0] for line in lines[1:]] == list("0123456")
    tokenizer = BertTokenizer.from_pretrained(copy / "5")
    model = TinyBertForSequenceClassification.from_pretrained(copy / "5").eval()
    for line, row in zip(lines[1:], (copy / "glue/SST-2/test.tsv").read_text().splitlines()[1:], strict=True):
        ids, _ = tokenizer.encode_pair(tokenizer.ids(row.split("\t")[1]))
        with torch.no_grad():
            logits, _ = model(torch.tensor([ids]))
        assert line.split("\t")[1] == str(int(logits.argmax()))


def test_data_url_copies_every_finished_output(copy):
    url = copy / "published"
    for name in ("augment", "pregenerate", "general", "prediction"):
        assert call(copy, name, *SHORT[name], "--overwrite_output", "--data_url", url / name).returncode == 0
    assert names(url / "augment") == {"train_aug.tsv"}
    # A folder keeps its name, so that the stages do not overwrite each other under one address.
    assert names(url / "pregenerate" / "2") >= {"epoch_0.json", "epoch_0_metrics.json"}
    wanted = {"config.json", "vocab.txt", "tokenizer_config.json", "pytorch_model.bin"}
    for name in ("general", "prediction"):
        assert tree(url / name) == {f"{OUTPUT[name]}/{file}": data for file, data in tree(copy / OUTPUT[name]).items()}
    assert names(url / "general" / "3") >= wanted
    assert names(url / "prediction" / "5") >= wanted | {"eval_results.txt"}


def test_general_evaluation_measures_without_training(copy):
    before = tree(copy)
    assert call(copy, "general", "--do_eval").returncode == 0
    after = tree(copy)
    results = after.pop("3/eval_results.txt").decode()
    assert after == before
    assert re.fullmatch(r"att_loss = [\d.]+\nrep_loss = [\d.]+\n", results)


# --- other programs


@pytest.mark.parametrize("output", ["4", "5", "teacher/SST-2"])
def test_hugging_face_reads_a_stage_s_output_and_agrees(pipeline, output):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = pipeline[0] / output
    texts = ["The film is GOOD and warmth .", 'unfortunate plots "dull" , not very']
    theirs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    tokenizer = BertTokenizer.from_pretrained(folder)
    ours = [tokenizer.encode_pair(tokenizer.ids(text))[0] for text in texts]
    real = theirs["attention_mask"].sum(1).tolist()
    assert [row[:count] for row, count in zip(theirs["input_ids"].tolist(), real, strict=True)] == ours
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**theirs).logits
        model = TinyBertForSequenceClassification.from_pretrained(folder).eval()
        logits, _ = model(theirs["input_ids"], theirs["token_type_ids"], theirs["attention_mask"])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_hugging_face_reads_the_general_student(pipeline):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(pipeline[0] / "3").eval()
    state = torch.load(pipeline[0] / "3" / "pytorch_model.bin", weights_only=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[f"bert.{key}"])


# --- flags


FLAGS = {
    data_augmentation: "--pretrained_bert_model --glove_embs --glue_dir --task_name --N --M --p --limit --batch_size",
    pregenerate_training_data: "--train_corpus --output_dir --bert_model --do_lower_case --do_whole_word_mask "
    "--reduce_memory --num_workers --epochs_to_generate --max_seq_len --short_seq_prob --masked_lm_prob "
    "--max_predictions_per_seq --one_seq --limit --packed",
    general_distill: "--pregenerated_data --teacher_model --student_model --output_dir --max_seq_length "
    "--reduce_memory --do_eval --do_lower_case --train_batch_size --eval_batch_size --learning_rate --weight_decay "
    "--wd --num_train_epochs --warmup_proportion --no_cuda --local_rank --gradient_accumulation_steps --fp16 "
    "--continue_train --eval_step --max_steps --init_student --keep_checkpoints --layer_map --attention_loss "
    "--attention_weight --hidden_weight --compile",
    task_distill: "--data_dir --teacher_model --student_model --task_name --output_dir --cache_dir --max_seq_length "
    "--do_eval --do_lower_case --train_batch_size --eval_batch_size --learning_rate --weight_decay --wd "
    "--num_train_epochs --warmup_proportion --no_cuda --gradient_accumulation_steps --aug_train --eval_step "
    "--pred_distill --temperature --do_finetune --no_finetune --do_predict --max_steps --layer_map --attention_loss "
    "--attention_weight --hidden_weight --compile --seeds --baseline",
}
COMMON_FLAGS = "--data_url --sample --seed --overwrite_output --precision --debug"


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_every_flag_is_in_the_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        script.parse_args(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for flag in f"{FLAGS[script]} {COMMON_FLAGS}".split():
        assert re.search(rf"^  .*{flag}\b", text, re.M), flag
    assert script.__doc__.splitlines()[0] in text


GUIDE = """
python data_augmentation.py --pretrained_bert_model teacher_model --glove_embs 1_pre_data/glove.6B.100d.txt --glue_dir . --task_name SST-2
python pregenerate_training_data.py --train_corpus 1_pre_data/documents.txt --output_dir 2_pregenerate_data --bert_model teacher_model --do_whole_word_mask
python general_distill.py --pregenerated_data 2_pregenerate_data --teacher_model teacher_model --student_model student_model --output_dir 3_general_distill --do_lower_case
python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 3_general_distill --task_name sst-2 --output_dir 4_task_distill_mid --aug_train --do_lower_case
python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 4_task_distill_mid --task_name sst-2 --output_dir 5_task_distill_out --aug_train --do_lower_case --pred_distill
python task_distill.py --do_eval --student_model 5_task_distill_out --data_dir SST-2 --task_name SST-2 --output_dir 5_task_distill_out --do_lower_case
"""  # noqa: E501
SCRIPTS = {f"{script.__name__}.py": script for script in FLAGS}


@pytest.mark.parametrize("line", GUIDE.strip().splitlines(), ids=range(6))
def test_the_commands_of_the_guide_mean_what_no_flag_means(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, script, *flags = shlex.split(line)
    given = vars(SCRIPTS[script].parse_args(flags))
    step = [flag for flag in flags if flag in ("--pred_distill", "--do_eval")]
    usual = vars(SCRIPTS[script].parse_args(step))
    different = {name for name in given if given[name] != usual[name]} - {"origins"}
    assert different <= {"do_lower_case", "do_whole_word_mask", "aug_train"}
    assert not list(tmp_path.iterdir())


def test_a_header_value_replaces_the_default_and_a_flag_replaces_it(copy, monkeypatch):
    monkeypatch.setattr(task_distill, "HEADER", {"max_steps": 3, "seed": 8})
    process = call(copy, "intermediate", "--output_dir", copy / "mid", "--seed", 7)
    assert process.returncode == 0, process.stderr
    assert re.search(r"max_steps +3 +script header", process.stdout)
    assert re.search(r"seed +7 +command line", process.stdout)
    assert "global_step = 3\n" in (copy / "mid" / "eval_results.txt").read_text()
    assert '"seed": 7' in (copy / "mid" / "run.json").read_text()


def test_a_header_s_output_folder_is_the_student_s_not_the_teacher_s(copy, monkeypatch):
    shutil.rmtree(copy / "teacher" / "SST-2")
    monkeypatch.setattr(task_distill, "HEADER", {"max_steps": 2, "output_dir": str(copy / "mid")})
    script, flags = scripts(copy)["intermediate"]
    position = flags.index("--output_dir")
    process = call_script(script, *flags[:position], *flags[position + 2 :])
    assert process.returncode == 0, process.stderr
    assert (copy / "teacher" / "SST-2" / "pytorch_model.bin").exists()
    assert "rep_loss" in (copy / "mid" / "eval_results.txt").read_text()


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_every_script_has_a_header_to_edit(script, monkeypatch):
    assert script.HEADER == {}
    monkeypatch.setattr(script, "HEADER", {"limit": 17, "sample": True})
    args = script.parse_args([])
    assert args.limit == 17 and args.sample and args.origins["limit"] == "script header"
    assert "sample" in args.origins.values()  # the header can switch the sample on


def test_flags_win_over_the_header_the_sample_the_task_and_the_defaults():
    def origin_of(name, *flags):
        args = task_distill.parse_args(list(flags))
        return getattr(args, name), args.origins.get(name)

    assert origin_of("max_seq_length", "--task_name", "mrpc") == (128, "MRPC")
    assert origin_of("max_seq_length") == (64, "SST-2")
    assert origin_of("max_seq_length", "--sample", "--task_name", "mrpc") == (64, "sample")
    assert origin_of("max_seq_length", "--sample", "--max_seq_length", "31") == (31, "command line")
    assert origin_of("num_train_epochs") == (10.0, "SST-2")
    assert origin_of("num_train_epochs", "--pred_distill") == (3.0, None)
    assert origin_of("data_dir", "--task_name", "cola") == ("CoLA", "CoLA")
    assert origin_of("temperature") == (1.0, None)


def test_the_printed_settings_tell_where_they_come_from(pipeline):
    text = pipeline[2]["intermediate"]
    assert re.search(r"learning_rate +0\.003 +command line", text)
    assert re.search(r"task_name +SST-2 +command line", text)
    assert not re.search(r"temperature", text)  # the default


def test_each_step_has_its_own_default_folders():
    def folders(*flags):
        args = task_distill.parse_args(list(flags))
        return args.student_model, args.output_dir

    assert folders() == ("3_general_distill", "4_task_distill_mid")
    assert folders("--pred_distill") == ("4_task_distill_mid", "5_task_distill_out")
    assert folders("--do_eval") == folders("--do_predict") == ("5_task_distill_out", "5_task_distill_out")
    assert folders("--do_finetune")[0] is None


def test_a_run_never_touches_its_inputs(pipeline, tmp_path):
    plain, made = make_all(tmp_path / "plain"), tree(pipeline[0])
    make_sst2(plain / "glue" / "SST-2", train=650)
    assert {name for name, data in tree(plain).items() if made[name] != data} == set()
