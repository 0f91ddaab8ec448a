"""--unlabelled: texts without labels join the rows of the two steps, and of nothing else."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from pipeline import Killed, no_pictures
from tiny import ROOT, call_script, make_sentence, make_tokenizer, names, scripts, tree

from transformer import report
from transformer.data import SequencesBuilder, joined
from transformer.files import UserError
from transformer.flags import FINETUNE, INTERMEDIATE, PREDICTION
from transformer.glue import TASKS
from transformer.outputs import read_record
from transformer.own_tasks import find_task
from transformer.settings import Lengths, settings_for
from transformer.task_run import TaskRun
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.task import Row, TaskFile, unlabelled_rows


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def built(texts, labels=None):
    rows = [Row(0, [], (text,), labels and labels[number]) for number, text in enumerate(texts)]
    return CLASSIFICATION.encode(rows, make_tokenizer(), Lengths(9), ("0", "1"))


def test_sequences_end_to_end_are_those_of_one_file_without_labels():
    texts = ["a good film", "", "the plot is dull and the song is very poor .", "warm"]
    whole, parts = built(texts), joined([built(texts[:1], ["1"]), built(texts[1:3]), built(texts[3:])])
    assert parts.labels is None and len(parts) == 4 and parts.ids.dtype == whole.ids.dtype
    for name in ("ids", "offsets", "first_lengths", "lengths"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    rows = np.array([3, 0, 2])
    for key, value in parts.batch(rows).items():
        torch.testing.assert_close(value, whole.batch(rows)[key])


def test_labels_of_several_numbers_keep_their_shape():
    builder = SequencesBuilder(9)
    for label in ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        builder.add([2, 3], 2, label)
    labels = builder.build(np.float32).labels
    assert labels.dtype == np.float32 and labels.tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "name, text, texts",
    [
        ("t.txt", "good film\n\n  \nbad film\n", [("good film",), ("bad film",)]),
        ("t.tsv", "id\tsentence\n1\tgood\n2\t\n", [("good",)]),
        ("train.csv", "sentence,label\ngood,1\n", [("good",)]),  # a label is not looked at
        ("t.jsonl", '{"sentence": "good", "label": null}\n', [("good",)]),
    ],
)
def test_texts_come_from_a_table_or_a_line_each(tmp_path, name, text, texts):
    path = write(tmp_path / name, text)
    assert [row.texts for row in unlabelled_rows(path, TASKS["sst-2"])] == texts
    assert all(row.label is None for row in unlabelled_rows(path, TASKS["sst-2"]))


def test_pairs_have_a_tab_between(tmp_path):
    path = write(tmp_path / "t.txt", "a\tb\n\tc\n\t\n")
    assert [row.texts for row in unlabelled_rows(str(path), TASKS["rte"])] == [("a", "b"), ("", "c")]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("t.txt", "\n \n", "t.txt: no texts to train on"),
        ("t.tsv", "text\ngood\n", "t.tsv line 1: no column 'sentence'"),
        ("gone.txt", None, "gone.txt: no such file"),
        ("-", None, "-: no such file"),
    ],
)
def test_a_file_without_texts_is_told(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(UserError, match=message):
        list(unlabelled_rows(name, TASKS["sst-2"]))


def test_dev_rows_do_not_come_back(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [f"text {number}" for number in range(80)]
    write(tmp_path / "mood" / "train.csv", "text,label\n" + "".join(f"{row},{row[-1] < '5'}\n" for row in rows))
    task = find_task("mood", tmp_path / "mood", 0.2)
    texts = write(tmp_path / "t.txt", "\n".join([*rows, "another", "text 3 "]))
    given = {"unlabelled": [str(texts)], "data_dir": str(tmp_path / "mood"), "max_seq_length": 9, "limit": 70}
    run = TaskRun(task, *settings_for(INTERMEDIATE, given, task=task.settings).parts, report_processes())
    dev = {row.texts for row in TaskFile(tmp_path / "mood" / "dev.csv", task)}
    assert 5 < len(dev) < 30
    data = run.read_data(make_tokenizer(), task.labels)
    kept = 82 - len(dev)
    assert data.plan.counts["unlabelled"] == min(kept, 70) and data.train.labels is None
    rows = min(80 - len(dev), 70) + data.plan.counts["unlabelled"]
    assert len(data.train) == rows == data.plan.counts["rows"] == data.plan.counts["examples"]
    assert data.dev[0][1].labels is not None
    assert f"t.txt: {len(dev)} rows left out, empty or in the dev set" in caplog.text
    assert f"t.txt: {kept} rows without labels" in caplog.text


def report_processes():
    from transformer import processes

    return processes.start(1, "fp32", True)


def test_fine_tuning_and_evaluation_take_no_texts():
    given = {"unlabelled": ["a b.txt", "c.txt"], "data_dir": "d"}
    for more in ({"do_eval": True}, {"do_predict": True}):
        with pytest.raises(UserError, match="--unlabelled: for the two steps of distillation only"):
            settings_for("evaluation", given | more)
    with pytest.raises(UserError, match="--unlabelled: for the two steps"):
        settings_for(FINETUNE, given)
    settings = settings_for(PREDICTION, given)
    for step in (FINETUNE, "baseline"):
        assert TaskRun(TASKS["sst-2"], *settings.for_step(step).parts, None).reading.unlabelled is None
    assert "--unlabelled 'a b.txt' c.txt" in settings_for(INTERMEDIATE, given).next_command()


# --- through the scripts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = random.Random(4)
    lines = [f"and {make_sentence(rng, rng.random() < 0.5)}" for _ in range(37)]  # none is a dev row
    folder = tmp_path_factory.mktemp("texts")
    write(folder / "b.tsv", "\n".join(["sentence", *lines[:6], ""]))
    return [write(folder / "a.txt", "\n".join(lines)), folder / "b.tsv"]


def step(folder, name, output, texts, *flags):
    """(script, flags) of a step with the texts, as its own output."""
    script, usual = scripts(folder)[name]
    return script, [*usual, "--output_dir", folder / output, "--no_cuda", "--unlabelled", *texts, *flags]


def run(*command):
    with no_pictures():
        finished = call_script(*[command[0], *command[1]])
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_both_steps_train_on_them_and_tell_how_many(copy, texts):
    labelled = len((copy / "glue/SST-2/train_aug.tsv").read_text().splitlines()) - 1
    printed = run(*step(copy, "intermediate", "4u", texts))
    assert f"{labelled + 43} rows in (43 of them without labels)" in printed
    assert "a.txt: 37 rows without labels" in printed and f"--unlabelled {texts[0]} {texts[1]}" in printed
    assert read_record(copy / "4u")["inputs"].keys() >= {"unlabelled", "train_aug.tsv"}
    printed = run(*step(copy, "prediction", "5u", texts, "--student_model", copy / "4u", "--baseline"))
    assert f"teacher's logits of {labelled + 43} rows" in printed
    text = (copy / "5u" / "report.md").read_text()
    assert text.count(f"{labelled + 43} rows (43 of them without labels)") == 2
    assert "for as many epochs, on the rows with labels, as the prediction step" in text
    assert "unlabelled" not in read_record(copy / "5u" / "baseline")["inputs"]
    # The same files elsewhere are the same input; other texts are not.
    moved = [write(copy / "elsewhere" / path.name, path.read_text()) for path in texts]
    assert "finished before" in run(*step(copy, "intermediate", "4u", moved))
    write(moved[0], "another text\n")
    for files, told in ((moved, "unlabelled has changed"), ([], "unlabelled is no input now")):
        script, flags = step(copy, "intermediate", "4u", files)
        found = call_script(script, *(flags if files else flags[:-1]))
        assert found.returncode == 2 and told in found.stderr


@pytest.mark.slow
def test_a_missing_file_is_told_before_anything_is_trained(copy):
    script, flags = step(copy, "intermediate", "4u", [copy / "gone.txt"])
    found = call_script(script, *flags)
    assert found.returncode == 2 and "gone.txt: no such file" in found.stderr and not (copy / "4u").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes_and_two_processes_train_as_one(copy, texts):
    for student in ("3", "4"):  # dropout draws for the batch of a process
        config = json.loads((copy / student / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (copy / student / "config.json").write_text(json.dumps(config))
    for name in ("intermediate", "prediction"):
        script, flags = step(copy, name, "straight", texts, "--max_steps", 9, "--eval_step", 4)
        run(script, flags)
        expected = tree(copy / "straight")
        (copy / "straight").rename(copy / f"one_{name}")
        several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*several, str(ROOT / script), *map(str, flags), "--output_dir", str(copy / f"two_{name}")]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert finished.returncode == 0, finished.stderr
        assert names(copy / f"one_{name}") == names(copy / f"two_{name}")
        states = [torch.load(copy / f"{each}_{name}/pytorch_model.bin", weights_only=True) for each in ("one", "two")]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr("transformer.history.History.add_evaluation", interrupt_at(8))
            call_script(script, *flags)
        assert (copy / "straight" / "training_state.bin").is_file()
        run(script, flags)
        assert tree(copy / "straight") == expected
        (copy / "straight").rename(copy / f"again_{name}")


def interrupt_at(number):
    def add_evaluation(history, step, results):
        if step == number:
            raise Killed

    return add_evaluation


def test_a_report_tells_the_rows_without_labels(tmp_path):
    effort = {"steps": 4, "seconds": None, "rows": 1029, "unlabelled": 1000, "command": None}
    step = report.Step("", tmp_path, {"train_batch_size": 300}, {}, {}, {}, effort)
    assert report.effort_words(step) == ["1,029 rows (1,000 of them without labels)", "4 steps (1 epochs)"]
