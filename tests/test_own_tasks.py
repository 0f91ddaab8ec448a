"""Tasks of one's own: what task.json and the headers say, and every stage on them."""

import csv
import json

import pytest
from tiny import GOOD, call_script, make_all, make_sentence, random

from transformer.file_utils import UserError
from transformer.glue import TASKS, TaskFile, compute_metrics
from transformer.own_tasks import find_task
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.regression import REGRESSION

pytestmark = pytest.mark.usefixtures("no_pictures")


def write(folder, name, text, description=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    if description is not None:
        (folder / "task.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("header", "texts"),
    [
        ("sentence\tlabel", ("sentence",)),
        ("text\tlabel", ("text",)),
        ("id\tlabel\ttext", ("text",)),
        ("sentence1\tsentence2\tlabel", ("sentence1", "sentence2")),
        ("sentence\tlabel\tsentence1\tsentence2", ("sentence1", "sentence2")),
        ("premise\thypothesis\tgold_label", ("premise", "hypothesis")),
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path, header, texts):
    names = header.split("\t")
    rows = ["\t".join(label if "label" in name else name.upper() for name in names) for label in ("no", "yes", "no")]
    folder = write(tmp_path, "train.tsv", "\n".join([header, *rows, ""]))
    task = find_task("mine", folder)
    assert task.text_columns == texts and task.labels == ("no", "yes") and task.metrics == ("acc", "f1", "mcc")
    assert (task.name, task.train_file, task.dev_files, task.test_files) == (
        "mine",
        "train.tsv",
        ("dev.tsv",),
        ("test.tsv",),
    )
    [first, *_] = TaskFile(folder / "train.tsv", task)
    assert first.texts == tuple(name.upper() for name in texts) and first.label == "no"


def test_the_description_decides_over_the_header(tmp_path):
    description = {
        "text": "b",
        "label": "c",
        "labels": ["yes", "no"],
        "metric": "f1",
        "max_seq_length": 33,
        "epochs": 2.5,
        "label_names": ["agreed", "refused"],
        "ignore_labels": ["-"],
    }
    folder = write(tmp_path, "train.csv", "sentence,b,label,c\nx,one,1,no\nx,two,1,-\nx,three,1,Yes\n", description)
    task = find_task("mine", folder)
    assert (task.text_columns, task.label_column, task.labels) == (("b",), "c", ("yes", "no"))
    assert (task.metrics, task.max_seq_length, task.epochs) == (("f1", "acc", "mcc"), 33, 2.5)
    assert task.label_names == ("agreed", "refused") and task.augmented_file == "train_aug.csv"
    rows = TaskFile(folder / "train.csv", task)
    assert [(row.texts, row.label) for row in rows] == [(("one",), "no"), (("three",), "yes")] and rows.skipped == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "b", "c"], ("a", "b", "c")),
        (["10", "9", "0"], ("0", "9", "10")),
        (["1.5", "2", "2"], ()),
        (["Good", "bad", "good"], ("Good", "bad")),
        (["-1", "1", "1"], ("-1", "1")),
        (["1", "x", "2"], ("1", "2", "x")),
    ],
)
def test_labels_are_the_training_file_s_and_fractions_are_scores(tmp_path, labels, expected):
    folder = write(tmp_path, "train.tsv", "\n".join(["text\tlabel", *(f"x\t{label}" for label in labels), ""]))
    task = find_task("mine", folder)
    assert task.labels == expected and task.kind is (CLASSIFICATION if expected else REGRESSION)


def test_labels_of_json_lines_may_be_numbers_and_truth_values(tmp_path):
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}, {"text": "c", "label": True}]
    folder = write(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = find_task("mine", folder)
    assert task.labels == ("false", "true")
    assert [row.label for row in TaskFile(folder / "train.jsonl", task)] == ["true", "false", "true"]


def test_whole_numbers_are_scores_where_the_description_says_so(tmp_path):
    folder = write(tmp_path, "train.tsv", "text\tlabel\nx\t1\ny\t5\n", {"regression": True, "metric": "pearson"})
    task = find_task("mine", folder)
    assert task.kind is REGRESSION and task.num_labels == 1 and task.metrics == ("pearson", "corr", "spearmanr")
    folder = write(tmp_path / "b", "train.tsv", "text\tlabel\nx\t1.5\ny\t5\n", {"regression": False})
    assert find_task("mine", folder).labels == ("1.5", "5")


@pytest.mark.parametrize("name", ["sst-2", "SST-2", "mnli", "ax"])
def test_glue_s_names_come_first(tmp_path, name):
    folder = write(tmp_path / name, "train.tsv", "text\tlabel\nx\t1\ny\t5\n")
    assert find_task(name, folder) is TASKS[name.lower()]


@pytest.mark.parametrize(
    ("text", "description", "message"),
    [
        (None, None, "neither one of CoLA, .* nor is there a task.json or a training file"),
        (None, {}, "no column for the text"),
        (None, {"text": "a", "label": "b"}, "no training file to take the labels from"),
        ("body\tlabel\nx\t1\n", None, r'train.tsv line 1: no column for the text .*; found body, label; .*"text"'),
        ("text\tclass\nx\t1\n", None, "no column for the label"),
        ("text\tlabel\nx\t1\ny\t1\n", None, "every row has the label '1'"),
        ("text\tlabel\n" + "".join(f"x\t{n}\n" for n in range(51)), None, "51 different labels in the column 'label'"),
        ("text\tlabel\nx\t1\n", {"txt": "text"}, "'txt' is no key here; expected text, label"),
        ("text\tlabel\nx\t1\n", {"text": ["a", "b", "c"]}, "text is .*, expected a column's name, or a list of two"),
        ("text\tlabel\nx\t1\n", {"labels": ["a"]}, "labels is .*, expected a list of different labels, two or more"),
        ("text\tlabel\nx\t1\n", {"labels": ["a", "a"]}, "expected a list of different labels"),
        ("text\tlabel\nx\t1\n", {"labels": ["0", "1"], "label_names": ["x", "y", "z"]}, "3 label_names for 2 labels"),
        ("text\tlabel\nx\t1\n", {"labels": ["0", "1"], "metric": "corr"}, "metric is 'corr'"),
        ("text\tlabel\nx\t1\n", {"regression": True, "metric": "acc"}, "metric is 'acc'"),
        ("text\tlabel\nx\t1\n", {"regression": True, "labels": ["0", "1"]}, "labels and regression"),
        ("text\tlabel\nx\t1\n", {"epochs": 0}, "epochs is 0, expected a number above 0"),
        ("text\tlabel\nx\t1\n", {"max_seq_length": True}, "max_seq_length is True"),
        ("text\tlabel\nx\t1\n", [], "expected one JSON object"),
        ("text\tlabel\nx\n", None, "train.tsv line 2: 1 columns, expected 2"),
    ],
)
def test_what_describes_no_task_is_told_in_one_line(tmp_path, text, description, message):
    if description is not None:
        write(tmp_path, "task.json", json.dumps(description))
    if text is not None:
        write(tmp_path, "train.tsv", text)
    with pytest.raises(UserError, match=message) as error:
        find_task("mine", tmp_path)
    assert "\n" not in str(error.value)


def test_a_name_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected a name of letters"):
        find_task("../mine", tmp_path)


def test_f1_of_more_than_two_classes_is_their_mean(tmp_path):
    folder = write(tmp_path, "train.tsv", "text\tlabel\nx\ta\ny\tb\nz\tc\n")
    metrics = compute_metrics(find_task("mine", folder), [0, 0, 1, 2], [0, 1, 1, 2])
    # class a: precision 1/2, recall 1; b: 1, 1/2; c: 1, 1
    assert metrics["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3) and metrics["acc"] == 0.75


# --- every stage on data of one's own

RNG = random.Random(17)


def make_csv(folder):
    """Reviews as a shop exports them: quoted, with commas, other columns around, the verdict in words."""
    folder.mkdir()
    for name, count in (("train", 31), ("dev", 11), ("test", 7)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["date", "review", "verdict"] if name != "test" else ["date", "review"])
            for number in range(count):
                row = [f"day {number}", f'"so", {make_sentence(RNG, number % 2)}', ("bad", "good")[number % 2]]
                table.writerow(row if name != "test" else row[:2])
    description = {"text": "review", "label": "verdict", "metric": "f1", "epochs": 2, "max_seq_length": 31}
    (folder / "task.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def make_jsonl(folder):
    """Pairs with a score, without a task.json."""
    folder.mkdir()
    for name, count in (("train", 31), ("dev", 11), ("test", 7)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for number in range(count):
                texts = [make_sentence(RNG, RNG.random() < 0.5) for _ in range(2)]
                score = sum(word in GOOD for text in texts for word in text.split()) + 0.5
                row = {"id": number, "sentence1": texts[0], "sentence2": texts[1], "label": score}
                file.write(json.dumps(row if name != "test" else dict(list(row.items())[:3])) + "\n")
    return folder


@pytest.fixture(scope="module", params=["csv", "jsonl"])
def finished(request, tmp_path_factory):
    """All stages run on a task of one's own: (folder, name of the task, what the evaluation printed)."""
    folder = make_all(tmp_path_factory.mktemp(request.param))
    (make_csv if request.param == "csv" else make_jsonl)(folder / "glue" / "reviews")
    for name in ("student", "2", "3"):
        assert name == "student" or not (folder / name).exists()
    teacher, data = folder / "teacher", folder / "glue" / "reviews"
    common = [
        "--task_name",
        "reviews",
        "--data_dir",
        data,
        "--teacher_model",
        teacher,
        "--train_batch_size",
        13,
        "--max_steps",
        9,
        "--eval_step",
        5,
        "--max_seq_length",
        31,
    ]
    call(
        "data_augmentation.py",
        "--task_name",
        "reviews",
        "--glue_dir",
        folder / "glue",
        "--pretrained_bert_model",
        teacher,
        "--glove_embs",
        folder / "glove.txt",
        "--N",
        3,
        "--M",
        4,
    )
    call(
        "pregenerate_training_data.py",
        "--train_corpus",
        folder / "corpus.txt",
        "--bert_model",
        teacher,
        "--output_dir",
        folder / "2",
        "--max_seq_len",
        31,
        "--epochs_to_generate",
        1,
    )
    call(
        "general_distill.py",
        "--pregenerated_data",
        folder / "2",
        "--teacher_model",
        teacher,
        "--student_model",
        folder / "student",
        "--output_dir",
        folder / "3",
        "--max_seq_length",
        31,
        "--max_steps",
        3,
    )
    steps = (
        ["--aug_train", "--student_model", folder / "3", "--output_dir", folder / "4"],
        ["--aug_train", "--pred_distill", "--student_model", folder / "4", "--output_dir", folder / "5"],
        ["--do_eval", "--do_predict", "--student_model", folder / "5", "--output_dir", folder / "5"],
    )
    printed = [call("task_distill.py", *common, *flags) for flags in steps]
    return folder, data, printed


def call(*command):
    finished = call_script(*command)
    assert finished.returncode == 0, f"{command}\n{finished.stdout}{finished.stderr}"
    return finished.stdout


def test_augmentation_writes_the_file_s_own_kind(finished):
    folder, data, _ = finished
    kind = ".csv" if (data / "train.csv").exists() else ".jsonl"
    task = find_task("reviews", data)
    rows, widened = list(TaskFile(data / f"train{kind}", task)), list(TaskFile(data / f"train_aug{kind}", task))
    assert len(widened) > len(rows)
    assert [row.columns for row in rows] == [row.columns for row in widened if row.columns in [r.columns for r in rows]]
    for row in widened:  # the other columns stay
        assert any(
            row.label == original.label and list(row.columns)[0] == list(original.columns)[0] for original in rows
        )
    if kind == ".csv":
        assert any(row.texts[0].startswith('" so "') for row in widened)


def test_every_step_knows_the_task(finished):
    folder, data, printed = finished
    config = json.loads((folder / "5" / "config.json").read_text())
    if (data / "train.csv").exists():
        assert config["id2label"] == {"0": "bad", "1": "good"}
        assert "dev f1" in printed[2] and "dev acc" in printed[2]
        predictions = {"bad", "good"}
    else:
        assert config["id2label"] == {"0": "score"}
        assert "dev corr" in printed[2] and "dev pearson" in printed[2]
        predictions = None
    header, *lines = (folder / "5" / "reviews.tsv").read_text().splitlines()
    assert header == "index\tprediction" and len(lines) == 7
    values = [line.split("\t")[1] for line in lines]
    assert set(values) <= predictions if predictions else all(float(value) == float(value) for value in values)
    assert (folder / "teacher" / "reviews" / "pytorch_model.bin").is_file()


def test_a_changed_description_is_another_input(finished):
    folder, data, _ = finished
    description = data / "task.json"
    before = description.read_text() if description.exists() else None
    description.write_text(json.dumps({**json.loads(before or "{}"), "epochs": 1}))
    try:
        found = call_script(
            "task_distill.py",
            "--task_name",
            "reviews",
            "--data_dir",
            data,
            "--teacher_model",
            folder / "teacher",
            "--train_batch_size",
            13,
            "--max_steps",
            9,
            "--eval_step",
            5,
            "--max_seq_length",
            31,
            "--aug_train",
            "--student_model",
            folder / "3",
            "--output_dir",
            folder / "4",
        )
    finally:
        description.unlink()
        if before:
            description.write_text(before)
    assert found.returncode == 2 and "task.json was" in found.stderr


def test_an_unknown_task_names_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call_script("task_distill.py", "--task_name", "reviews", "--data_dir", tmp_path)
    assert found.returncode == 2 and found.stderr.startswith("error: --task_name reviews: neither one of CoLA")
