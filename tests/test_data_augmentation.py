"""Units of stage 1: variants, rows, rounds, and an output that depends on the seed alone."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import GOOD, ROOT, call_script, make_glove, make_sst2, make_teacher

import data_augmentation
from data_augmentation import augment_rows, make_variants, prepare, rounds
from transformer.file_utils import UserError
from transformer.glue import TaskFile
from transformer.outputs import Output
from transformer.own_tasks import find_task
from transformer.processes import Processes
from transformer.tasks.classification import CLASSIFICATION

CPU = Processes(torch.device("cpu"))

join = CLASSIFICATION.join


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augmentation")
    make_teacher(folder / "teacher")
    make_glove(folder / "glove.txt")
    make_sst2(folder / "glue" / "SST-2")
    return folder


class NoProposer:
    """Stands in for the models: every word may become "new" or "other"."""

    def candidates(self, texts):
        return {text: (text.split(), {index: ["new", "other"] for index in range(len(text.split()))}) for text in texts}

    def words(self, text):
        return text.split()


def variants(text, candidates, tries=50, probability=0.5, seed=1):
    rng = np.random.default_rng(seed)
    return [join(each) for each in make_variants(text, text.split(), candidates, tries, probability, rng, join)]


def test_variants_never_repeat_each_other_or_the_sentence():
    found = variants("a b c", {0: ["x", "a"], 1: ["y"]})
    assert len(found) == len(set(found)) == 3  # of the 4 that two words make, one is the sentence
    assert "a b c" not in found


def test_probability_0_gives_no_variant():
    assert variants("a b c", {0: ["x"], 1: ["y"]}, probability=0) == []


def test_probability_1_replaces_every_word_that_has_candidates():
    assert variants("a b c", {0: ["x"], 2: ["y"]}, probability=1) == ["x b y"]


def test_no_tries_give_no_variant():
    assert variants("a b", {0: ["x"]}, tries=0) == []


def test_a_sentence_without_candidates_has_no_variant():
    assert variants("a b", {}) == []


def test_the_tokenized_form_of_the_sentence_is_no_variant():
    words = ["film", "s", "."]
    rng = np.random.default_rng(0)
    assert make_variants("Films.", words, {0: ["film"]}, 20, 0.5, rng, join) == []


def test_each_candidate_is_drawn_about_equally_often():
    rng = np.random.default_rng(0)
    drawn = [make_variants("a", ["a"], {0: ["x", "y", "z"]}, 1, 1.0, rng, join)[0][0] for _ in range(900)]
    assert all(240 < drawn.count(word) < 360 for word in "xyz")


def read_task(tmp_path, name, *lines):
    (tmp_path / "train.tsv").write_text("".join(f"{line}\n" for line in lines))
    return TaskFile(tmp_path / "train.tsv", find_task(name))


def test_each_row_is_followed_by_its_variants_with_its_label(tmp_path):
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", "a b\t1", "c d\t0")
    lines = augment_rows(task_file, NoProposer(), 9, 0.5, 1, list(task_file), 0)
    first, second = lines.index("a b\t1"), lines.index("c d\t0")
    assert first == 0 < second - 1
    assert {line[-1] for line in lines[:second]} == {"1"} and {line[-1] for line in lines[second:]} == {"0"}


def test_a_row_s_variants_depend_on_its_own_number_only(tmp_path):
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", "a b c d\t1", "a b c d\t1", "e f g h\t0")
    rows = list(task_file)
    together = augment_rows(task_file, NoProposer(), 9, 0.5, 1, rows, 0)
    apart = [
        line
        for number, row in enumerate(rows)
        for line in augment_rows(task_file, NoProposer(), 9, 0.5, 1, [row], number)
    ]
    assert together == apart
    second = together.index("a b c d\t1", 1)
    assert together[:second] != together[second : 2 * second]  # equal sentences do not get equal variants


def run(folder, *flags):
    """Augment the tiny task; returns the output's bytes."""
    return run_and_read(folder, *flags)[0]


def run_and_read(folder, *flags):
    """Augment the tiny task; returns the output's bytes and what the script printed."""
    process = call_script(
        "data_augmentation.py",
        "--pretrained_bert_model",
        folder / "teacher",
        "--glove_embs",
        folder / "glove.txt",
        "--glue_dir",
        folder / "glue",
        "--N",
        4,
        "--M",
        6,
        "--overwrite_output",
        *flags,
    )
    assert process.returncode == 0, process.stderr
    return (folder / "glue" / "SST-2" / "train_aug.tsv").read_bytes(), process.stdout + process.stderr


def test_without_a_terminal_the_log_says_now_and_then_how_far_it_is(folder, monkeypatch):
    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 3)
    assert "rows/s" not in run_and_read(folder)[1]  # it took no minute
    monkeypatch.setattr("transformer.console.REPORT_SECONDS", 0)
    rows = len((folder / "glue" / "SST-2" / "train.tsv").read_text().splitlines()) - 1
    said = re.findall(r"(\d+) of (\d+) rows, [0-9.]+ rows/s, 0 min left", run_and_read(folder)[1])
    assert said == [(str(done), str(rows)) for done in range(3, rows, 3)]


def test_the_output_does_not_depend_on_chunk_or_batch_size(folder, monkeypatch):
    expected = run(folder)
    for rows, size in ((1, 32), (7, 1), (128, 2)):
        monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", rows)
        assert run(folder, "--batch_size", size) == expected, (rows, size)


def test_the_output_depends_on_the_seed(folder):
    assert run(folder) == run(folder) != run(folder, "--seed", 5)


def test_a_limit_gives_the_beginning_of_the_whole_output(folder):
    assert run(folder).startswith(part := run(folder, "--limit", 3))
    sentences = [line.split("\t")[0] for line in part.decode().splitlines()]
    rows = (folder / "glue" / "SST-2" / "train.tsv").read_text().splitlines()
    assert sentences[0] == "sentence" and {row.split("\t")[0] for row in rows[1:4]} <= set(sentences)
    assert rows[4].split("\t")[0] not in sentences


def test_good_words_are_replaced_by_the_whole_script(folder):
    lines = run(folder, "--p", "1").decode().splitlines()
    rows = (folder / "glue" / "SST-2" / "train.tsv").read_text().splitlines()
    assert [line for line in lines if line in rows] == rows  # every row is there, in its order
    added = [line for line in lines if line not in rows]
    assert added and all(len(line.split("\t")) == 2 for line in added)
    assert any(not any(word in line.split() for word in GOOD) for line in added if line.endswith("\t1"))


# --- Chinese


@pytest.mark.parametrize(
    "words, text",
    [
        (["我", "喜欢", "电影", "。"], "我喜欢电影。"),
        (["看", "good", "film", "，", "好"], "看 good film ，好"),
        (["“", "好", "”", "，", "he", "said", "“", "yes", "”"], "“好”，he said “ yes ”".replace("，he", "， he")),
        (["a", "film", "."], "a film ."),
        (["café", "films"], "café films"),
        (["好", "—", "—", "看"], "好— —看"),
    ],
)
def test_no_space_stands_inside_chinese(words, text):
    assert join(words) == text


# --- processes, stops, flags


def test_the_proposer_is_shown_what_this_process_has_before_it(tmp_path):
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", *(f"{row}\t1" for row in range(9)))
    seen = []
    watcher = NoProposer()
    watcher.prepare = seen.extend
    assert prepare(watcher, task_file, 3, None, CPU) == 9 and seen == [str(row) for row in range(3, 9)]
    seen.clear()
    assert prepare(watcher, task_file, 2, 8, Processes(CPU.device, rank=1, world_size=2)) == 8
    assert seen == [str(row) for row in range(5, 8)]


def test_the_processes_share_out_the_rows_of_every_round(tmp_path, monkeypatch):
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", *(f"{row}\t1" for row in range(23)))
    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 3)
    places = [Processes(CPU.device, rank, world_size=3) for rank in range(3)]
    shares = [list(rounds(task_file, 2, 22, place)) for place in places]
    assert [[rows for rows, _, _ in share] for share in shares] == [[9, 9, 2]] * 3
    found = [(first, row.texts[0]) for parts in zip(*shares, strict=True) for _, first, rows in parts for row in rows]
    assert [text for _, text in found] == [str(row) for row in range(2, 22)]
    assert all(first <= int(text) < first + 3 for first, text in found)


def test_a_round_ends_where_its_texts_are_long_and_the_output_is_the_same(folder, tmp_path, monkeypatch):
    task_file = read_task(
        tmp_path, "SST-2", "sentence\tlabel", *(f"{'a' * length}\t1" for length in (1, 9, 3, 3, 3, 9))
    )
    monkeypatch.setattr(data_augmentation, "CHUNK_TEXT", 8)
    assert [count for count, _, _ in rounds(task_file, 0, None, CPU)] == [2, 3, 1]
    monkeypatch.undo()
    expected = run(folder)
    monkeypatch.setattr(data_augmentation, "CHUNK_TEXT", 90)
    assert run(folder) == expected


# Runs the script in small chunks; with a number in place of "-" it is killed when it has saved so often.
STOPPABLE = """
import os, signal, sys
sys.path.insert(0, {root!r})
import data_augmentation
from transformer import console
from transformer.outputs import Output
data_augmentation.CHUNK_ROWS = 3
stop, save = sys.argv.pop(1), Output.save_progress
def save_and_die(self, *given):
    global stop
    save(self, *given)
    stop = stop if stop == "-" else int(stop) - 1
    if stop == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Output.save_progress = save_and_die
console.run(data_augmentation.main)
"""


def start(folder, processes, stop, tmp_path):
    """Augment the tiny task in some processes; the finished process."""
    (tmp_path / "stoppable.py").write_text(STOPPABLE.format(root=str(ROOT)))
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    command = [
        sys.executable,
        *several,
        tmp_path / "stoppable.py",
        stop,
        "--pretrained_bert_model",
        folder / "teacher",
        "--glove_embs",
        folder / "glove.txt",
        "--glue_dir",
        tmp_path,
        "--N",
        4,
        "--M",
        6,
        "--no_cuda",
    ]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_killed_on_some_processes_goes_on_on_others(folder, tmp_path, before, after):
    expected = run(folder)
    make_sst2(tmp_path / "SST-2")
    killed = start(folder, before, "2", tmp_path)
    assert killed.returncode != 0
    record, part = tmp_path / "SST-2" / "train_aug.run.json", tmp_path / "SST-2" / "train_aug.tsv.part"
    assert json.loads(record.read_text())["progress"]["rows"] == 6 * before
    assert expected.startswith(part.read_bytes())
    process = start(folder, after, "-", tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "SST-2" / "train_aug.tsv").read_bytes() == expected
    assert {path.name for path in (tmp_path / "SST-2").iterdir()} == {
        "train.tsv",
        "dev.tsv",
        "test.tsv",
        "train_aug.tsv",
        "train_aug.run.json",
    }
    rows = re.findall(r"29 rows in \((\d+) of them before\), (\d+) rows out, 0:\d\d", process.stdout)
    assert rows == [(str(6 * before), str(expected.count(b"\n") - 1))]  # logged once, by the first process
    finished = start(folder, before, "-", tmp_path) if before == 1 else None
    assert finished is None or "finished before" in finished.stdout


def test_a_stopped_run_goes_on_with_another_batch_size(folder, monkeypatch):
    expected, save, path = run(folder), Output.save_progress, folder / "glue" / "SST-2" / "train_aug.run.json"

    class Killed(BaseException):
        pass

    def save_and_die(*given):
        save(*given)
        raise Killed

    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 8)
    monkeypatch.setattr(Output, "save_progress", save_and_die)
    with pytest.raises(Killed):
        run(folder)
    monkeypatch.setattr(Output, "save_progress", save)
    assert json.loads(path.read_text())["progress"]["rows"] == 8
    process = call_script(
        "data_augmentation.py",
        "--pretrained_bert_model",
        folder / "teacher",
        "--glove_embs",
        folder / "glove.txt",
        "--glue_dir",
        folder / "glue",
        "--N",
        4,
        "--M",
        6,
        "--batch_size",
        1,
    )
    assert process.returncode == 0, process.stderr
    assert (folder / "glue" / "SST-2" / "train_aug.tsv").read_bytes() == expected


def test_a_batch_size_of_nothing_is_refused():
    with pytest.raises(UserError, match="--batch_size 0: expected a number above 0"):
        data_augmentation.read_settings(["--batch_size", "0"])
