"""Several labels a text: the kind's numbers, and a task of this kind through every step."""

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pipeline import ends_the_same
from sklearn.metrics import accuracy_score, f1_score
from tiny import NOUNS, call_script, make_sentence, make_teacher, make_tokenizer

from transformer import evaluation
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.outputs import read_results
from transformer.own_tasks import find_task, stored_task
from transformer.tasks.multilabel import MANY, MULTILABEL, WORST, best_threshold
from transformer.tasks.task import Task, TaskFile

TASK = Task("t", ("text",), "labels", ("a", "b", "c"), MULTILABEL.offered, kind=MULTILABEL, separator=";")


@pytest.mark.parametrize("cases", [50, pytest.param(300, marks=pytest.mark.slow)])
def test_scores_are_scikit_learn_s(cases):
    rng = np.random.default_rng(1)
    for _ in range(cases):
        shape = rng.integers(1, 12), rng.integers(1, 6)
        gold, found = (rng.random(shape) < rng.random() for _ in range(2))
        scores = MULTILABEL.score(TASK, found, gold)
        expected = {f"f1_{each}": f1_score(gold, found, average=each, zero_division=0) for each in ("micro", "macro")}
        if shape[1] == 1:  # which scikit-learn takes for one class of two
            expected = dict.fromkeys(expected, f1_score(gold[:, 0], found[:, 0], zero_division=0))
        assert scores == pytest.approx(expected | {"acc": accuracy_score(gold, found)})


def test_no_threshold_is_better_than_the_chosen_one():
    rng = np.random.default_rng(2)

    def f1(probabilities, gold, threshold):
        found = probabilities >= threshold
        return 2 * (found & gold).sum() / (found.sum() + gold.sum())

    for _ in range(300):
        size = rng.integers(1, 15)
        probabilities = rng.integers(0, 8, size) / 7  # ties, 0 and 1 too
        gold = rng.random(size) < 0.4
        chosen = best_threshold(probabilities, gold)
        assert 0 <= chosen <= 1
        if gold.any():
            tried = [f1(probabilities, gold, each) for each in np.arange(0, 29) / 28]
            assert f1(probabilities, gold, chosen) == max(tried)
        else:
            assert chosen == 0.5


def test_of_equally_good_thresholds_the_middle_one_stays():
    assert best_threshold(np.array([0.9, 0.7, 0.2, 0.1]), np.array([True, False, False, True])) == pytest.approx(0.8)
    # All four rows, or the first two: the middle between 0.6 and 0.4 is nearer to 0.5.
    assert best_threshold(np.array([0.8, 0.6, 0.4, 0.1]), np.array([True, True, False, False])) == pytest.approx(0.5)
    above = np.nextafter(0.5, 1)
    assert best_threshold(np.array([0.5, above]), np.array([False, True])) == above


def test_losses_are_means_over_classes_of_the_cross_entropy_of_probabilities():
    student, teacher = torch.tensor([[0.3, -2.0, 1.0], [4.0, 0.0, -1.0]]), torch.tensor([[1.0, 0, 2], [-1, 3, 0]])
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0]])

    def by_hand(outputs, wanted):
        found = outputs.sigmoid()
        return -(wanted * found.log() + (1 - wanted) * (1 - found).log()).mean(dim=1)

    torch.testing.assert_close(MULTILABEL.row_losses(student, targets), by_hand(student, targets))
    torch.testing.assert_close(MULTILABEL.gold_loss(student, targets), by_hand(student, targets).mean())
    expected = by_hand(student / 2, (teacher / 2).sigmoid()).mean()
    torch.testing.assert_close(MULTILABEL.prediction_loss(student, teacher, 2), expected)


def test_answers_are_at_each_class_s_threshold_in_the_table_s_order():
    task, outputs = Task(**{**TASK.__dict__, "thresholds": (0.9, 0.5, 0.1)}), torch.tensor([[1.0, -1.0, -1.0]])
    found, gold = MULTILABEL.answers(task, outputs, SimpleNamespace(labels=np.array([[1, 0, 0]])), ("c", "a", "b"))
    assert found.tolist() == [[False, True, False]] and gold.tolist() == [[False, False, True]]
    assert MULTILABEL.predictions(task, outputs, None, ("c", "a", "b")) == ["b"]
    assert MULTILABEL.predictions(TASK, torch.tensor([[1.0, 2, 0], [-1, -1, -1]]), None, ("c", "a", "b")) == [
        "c;a;b",
        "",
    ]
    assert MULTILABEL.answer_rows(TASK, outputs, None, ("c", "a", "b")) == [["c", "0.7311", "0.2689", "0.2689"]]


def make_task(folder, name, text, **description):
    (folder / "mood").mkdir()
    (folder / "mood" / name).write_text(text, encoding="utf-8")
    if description:
        (folder / "mood" / "task.json").write_text(json.dumps(description))
    return find_task("mood", folder / "mood")


@pytest.mark.parametrize(
    "name, text, description",
    [
        ("train.csv", "text,labels\nx,b; a\ny,\nz,A;a;\n", {"separator": ";"}),
        ("train.tsv", "text\tlabels\nx\tb|a\ny\t\nz\ta\n", {"separator": "|"}),
        ("train.jsonl", '{"text": "x", "labels": ["b", "a"]}\n{"text": "y", "labels": []}\n'
         '{"text": "z", "labels": ["a"]}\n', {}),
        ("train.jsonl", '{"text": "x", "labels": "b;a"}\n{"text": "y", "labels": ""}\n{"text": "z", "labels": "a"}\n',
         {"separator": ";"}),
    ],
)  # fmt: skip
def test_a_separator_or_a_list_gives_a_row_several_labels(tmp_path, name, text, description):
    task = make_task(tmp_path, name, text, **description)
    assert task.kind is MULTILABEL and task.metrics == ("f1_micro", "f1_macro", "acc") and task.rows == 3
    labels = task.labels
    assert sorted(map(str.lower, labels)) == ["a", "b"]
    a, b = sorted(labels, key=str.lower)
    found = [set(row.label) for row in TaskFile(tmp_path / "mood" / name, task)]
    assert found == [{a, b}, set(), {a}]
    assert MULTILABEL.target((b,), (b, a)) == [1.0, 0.0]
    assert f"any number of them a row, with {task.separator!r} between" in task.describe()


@pytest.mark.parametrize(
    "name, text, description, message",
    [
        ("train.csv", "text,label\nx,a;b\ny,c\n", {"separator": ";", "labels": ["a", "b"]},
         r"train.csv line 3: label 'c', expected labels with ';' between, or a list .*, each one of a, b; found 'c'"),
        ("train.csv", "text,label\nx,a\ny,\n", {"separator": ";"}, "every row has the label 'a' or none; expected two"),
        ("train.csv", "text,label\nx,\n", {"separator": ";"}, "every row has the empty label; expected two"),
        ("train.jsonl", '{"text": "x", "label": ["a", "b"]}\n{"text": "x", "label": ["a", {}]}\n', {},
         r"line 2: field 'label' is \[\"a\", \{\}\], expected text or a number, or a list of them"),
        ("train.jsonl", '{"text": "x", "label": "a"}\n{"text": "x", "label": ["a"]}\n', {},
         r"line 2: field 'label' is \[\"a\"\], expected text or a number$"),
        ("train.csv", "text,label\nx,a;b\n", {"separator": ";", "metric": "f1"},
         "metric is 'f1', expected one of f1_micro, f1_macro, acc"),
        ("train.csv", "text,label\nx,a;b\n", {"separator": ";", "regression": True}, "separator and regression"),
        ("train.csv", "text,label\nx,a;b\n", {"separator": ""}, "separator is '', expected the text between"),
    ],
)  # fmt: skip
def test_what_is_no_task_with_several_labels_is_told_in_one_line(tmp_path, name, text, description, message):
    with pytest.raises(UserError, match=message):
        task = make_task(tmp_path, name, text, **description)
        list(TaskFile(tmp_path / "mood" / name, task))


def test_rows_with_an_ignored_label_are_left_out_and_numbers_are_labels(tmp_path):
    rows = "".join(f"x,{number};0.5\n" for number in range(60))
    task = make_task(tmp_path, "train.csv", f"text,label\n{rows}y,7;?\n", separator=";", ignore_labels=["?"])
    assert len(task.labels) == 61 and task.warnings == () and task.rows == 60


def test_the_report_of_many_labels_has_the_worst_ones():
    names = tuple(f"label{number}" for number in range(MANY + 3))
    task = Task("t", ("text",), "labels", names, MULTILABEL.offered, kind=MULTILABEL, separator=";")
    gold = np.arange(100)[:, None] % len(names) == np.arange(len(names))
    found = gold.copy()
    found[:50, 7] = True
    answers = {"student": [evaluation.Answers("dev.tsv", found, gold)]}
    heading, [table] = MULTILABEL.answer_tables(task, answers, {})
    assert heading == "Answers label by label, the worst ones" and len(table) == WORST + 1
    assert table[0] == ["label in `dev.tsv`", "rows", "student sets it", "F1, student"]
    right, found_true = gold[:, 7].sum(), found[:, 7].sum()
    assert table[1] == ["label7", f"{right}", f"{found_true}", f"{2 * right / (right + found_true):.4f}"]
    assert MULTILABEL.answer_text(task, found[0]) == "label0;label7"
    assert "1.00 labels a row, 0.0% of the rows without any" in MULTILABEL.chance(task, *answers["student"])


# --- through the scripts


def make_data(folder):
    """The labels of a sentence are its nouns; some have none in the dev set."""
    rng = random.Random(5)
    folder.mkdir(parents=True)
    for name, count in (("train", 53), ("dev", 17), ("test", 7)):
        sentences = [make_sentence(rng, rng.random() < 0.5) for _ in range(count)]
        sentences[3] = "the very good and not the bad ."
        cells = ["; ".join(noun for noun in NOUNS if noun in sentence) for sentence in sentences]
        rows = sentences if name == "test" else map("\t".join, zip(sentences, cells, strict=True))
        header = "sentence" if name == "test" else "sentence\tlabel"
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    (folder / "task.json").write_text('{"separator": ";", "max_seq_length": 31}')
    return folder


def run(folder, *flags):
    sizes = ["--train_batch_size", 13, "--learning_rate", 3e-3, "--eval_step", 5]
    of_task = ["--task_name", "nouns", "--data_dir", folder / "nouns", "--teacher_model", folder / "teacher"]
    finished = call_script("task_distill.py", *of_task, *sizes, *flags)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of every step."""
    folder = tmp_path_factory.mktemp("several")
    make_teacher(folder / "teacher", max_position_embeddings=31)
    make_teacher(folder / "3", hidden_size=12, num_hidden_layers=2, intermediate_size=20, max_position_embeddings=31)
    make_data(folder / "nouns")
    run(folder, "--do_finetune", "--num_train_epochs", 6)
    run(folder, "--student_model", folder / "3", "--output_dir", folder / "4")
    run(folder, *prediction(folder, "5"), "--baseline")
    return folder


def prediction(folder, output):
    return ["--pred_distill", "--student_model", folder / "4", "--output_dir", folder / output]


def thresholds_of(folder):
    return json.loads((folder / "config.json").read_text())["task"].get("thresholds")


@pytest.mark.slow
def test_each_model_has_its_thresholds_and_is_measured_with_them(folder):
    assert thresholds_of(folder / "4") is None
    for name in ("teacher/nouns", "5", "5/baseline"):
        config = json.loads((folder / name / "config.json").read_text())
        assert config["problem_type"] == "multi_label_classification" and config["task"]["separator"] == ";"
        results = read_results(folder / name / "eval_results.txt")
        assert list(results)[:5] == ["global_step", "f1_micro", "f1_macro", "acc", "eval_loss"]
        # By hand: every threshold is the best one for the weights in the folder.
        model, tokenizer = TinyBertForSequenceClassification.from_pretrained(folder / name).eval(), make_tokenizer()
        rows = list(TaskFile(folder / "nouns" / "dev.tsv", find_task("nouns", folder / "nouns")))
        with torch.inference_mode():
            ids = [tokenizer.encode_pair(tokenizer.ids(row.texts[0]), max_length=31)[0] for row in rows]
            probabilities = np.array([model(torch.tensor([each]))[0][0].double().sigmoid().tolist() for each in ids])
        labels = list(config["id2label"].values())
        gold = np.array([[label in row.label for label in labels] for row in rows])
        assert config["task"]["thresholds"] == pytest.approx(
            [best_threshold(*each) for each in zip(probabilities.T, gold.T, strict=True)], abs=1e-4
        )
        found = probabilities >= np.array(config["task"]["thresholds"])
        assert results["f1_micro"] == pytest.approx(f1_score(gold, found, average="micro"))
    run(folder, "--do_eval", "--student_model", folder / "5", "--output_dir", folder / "evaluated")
    assert read_results(folder / "evaluated" / "eval_results.txt") == read_results(folder / "5" / "eval_results.txt")
    report = (folder / "5" / "report.md").read_text()
    assert "| label in `dev.tsv` | rows | student sets it | F1, teacher | F1, student | F1, baseline" in report
    assert "labels a row, 5.9% of the rows without any" in report and "| dev f1_micro |" in report


@pytest.mark.slow
def test_predictions_are_the_labels_in_one_cell_and_the_model_s_folder_knows_how(folder, tmp_path):
    run(folder, "--do_predict", "--student_model", folder / "5", "--output_dir", tmp_path)
    header, *lines = (tmp_path / "nouns.tsv").read_text().splitlines()
    cells = [line.split("\t")[1] for line in lines]
    assert header == "index\tprediction" and len(cells) == 7 and any(cells)
    assert all(set(cell.split(";")) <= {*NOUNS, ""} for cell in cells)
    flags = ["--student_model", folder / "5", "--output_dir", tmp_path, "--predict_file", folder / "nouns/test.tsv"]
    finished = call_script("task_distill.py", *flags)
    assert finished.returncode == 0, finished.stderr
    header, *rows = [line.split("\t") for line in (tmp_path / "predictions.tsv").read_text().splitlines()]
    names, thresholds = header[2:], thresholds_of(folder / "5")
    assert header[:2] == ["sentence", "label"] and sorted(names) == sorted(NOUNS)
    assert [row[1] for row in rows] == cells
    for _, cell, *numbers in rows:
        sure = [
            name for name, number, each in zip(names, numbers, thresholds, strict=True) if float(number) > each + 1e-4
        ]
        assert set(sure) <= set(cell.split(";"))
    task = stored_task(folder / "5")
    assert task.kind is MULTILABEL and task.separator == ";" and task.labels == tuple(names)


@pytest.mark.slow
def test_hugging_face_reads_the_kind_of_head(folder):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder / "5")
    loss = model(torch.tensor([[2, 7, 3]]), labels=torch.tensor([[1.0, 0, 0, 1, 0]])).loss
    assert model.config.problem_type == "multi_label_classification" and loss.isfinite()


@pytest.mark.slow
def test_a_run_killed_between_any_two_files_ends_with_the_same_bytes(folder):
    expected = ends_the_same(lambda output: run(folder, *prediction(folder, output)), folder)
    assert len(json.loads(expected["config.json"])["task"]["thresholds"]) == 5


@pytest.mark.slow
def test_thresholds_that_do_not_fit_the_head_are_told(folder, tmp_path):
    shutil.copytree(folder / "5", tmp_path / "5")
    config = json.loads((folder / "5" / "config.json").read_text())
    for thresholds, message in (
        ([0.5] * 4, "expected 5 numbers from 0 to 1"),
        ([2] * 5, "expected 5 numbers from 0 to 1"),
    ):
        config["task"]["thresholds"] = thresholds
        (tmp_path / "5" / "config.json").write_text(json.dumps(config))
        with pytest.raises(AssertionError, match=f"5/config.json: task.*{message}"):
            run(folder, "--do_eval", "--student_model", tmp_path / "5", "--output_dir", tmp_path / "out")
