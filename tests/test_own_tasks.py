"""Tasks of one's own: what task.json and the headers say, and every stage on them."""

import csv
import json
import re

import pytest
from tiny import GOOD, call_script, flags_from, make_all, make_sentence, random

from transformer.file_utils import UserError
from transformer.glue import TASKS, TaskFile, compute_metrics
from transformer.own_tasks import find_task
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.regression import REGRESSION
from transformer.tasks.task import Task

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
        (None, {}, 'no column for the text .*: {"text": "...", "label": "...", "labels": \\["...", "..."\\]}$'),
        ("text\tlabel\nx\t1\n", {"labels": [None, "a"]}, "labels is .None, 'a'., expected a list of different labels"),
        (None, {"text": "a", "label": "b"}, "no training file to take the labels from"),
        ("body\tlabel\nx\t1\n", None, r'train.tsv line 1: no column for the text .*; found body, label; .*"text"'),
        ("text\tclass\nx\t1\n", None, "no column for the label"),
        ("text\tlabel\nx\t1\n", {"label": "verdikt"}, "task.json: label is 'verdikt', train.tsv has no such column; f"),
        ("text\tlabel\nx\t1\n", {"text": ["text", "b"]}, "task.json: text is 'b', .* column; found text, label$"),
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
        ("text\tlabel\nx\ta\ny\t\n", None, r'line 3: the label is empty; .*"ignore_labels": \[""\], or has it in'),
        ("text\tlabel\nx\ta\ny\t \n", None, r'line 3: the label is empty; .*"ignore_labels": \[" "\]'),
        (
            "a film\t1\nx\t0\n",
            None,
            "line 1: no column for the text .* and no column for the label .*; found a film, ",
        ),
        (
            "a film\t1\nx\t0\n",
            None,
            r'names them: {"text": "...", "label": "..."}; if line 1 is no header, put one above it: text<TAB>label',
        ),
        ("text,label\nx,1\n", None, "commas seem to separate its columns; such a file's name is train.csv"),
        ("text\tlabel\n" + "".join(f"x\tw{n}\n" for n in range(51)), None, 'regression": false .* they are classes$'),
        (
            "text\tlabel\n" + "".join(f"x\t{n}\n" for n in (*range(50), "n/a")),
            None,
            r'line 52: the label .n/a. is a word among numbers.*"ignore_labels": \["n/a"\]',
        ),
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


def test_a_comma_outside_quotes_is_told_as_such(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nSlow, but good,1\n")
    with pytest.raises(UserError, match="line 2: 3 columns, expected 2; a text with ',' in it stands in double quotes"):
        find_task("mine", tmp_path)


def table(*labels):
    return "\n".join(["text\tlabel", *(f"x{number}\t{label}" for number, label in enumerate(labels)), ""])


@pytest.mark.parametrize(
    ("header", "labels", "description", "line"),
    [
        ("text\tlabel", "abca", None, "text: `text`; label: `label`; 3 classes: a, b, c; 4 rows"),
        ("Text\tLABEL", "ab", None, "text: `Text`; label: `LABEL`; 2 classes: a, b; 2 rows"),
        ("text\tlabel", ("0.5", "1"), None, "text: `text`; label: `label`; regression; 2 rows"),
        ("text\tlabel", "12", {"regression": True}, "text: `text`; label: `label`; regression"),
        ("text\tx", "12", {"label": "x", "labels": ["2", ""]}, "text: `text`; label: `x`; 2 classes: 2, ''"),
        ("Body\tX", "12", {"text": "body", "label": "x"}, "text: `Body`; label: `X`; 2 classes: 1, 2; 2 rows"),
    ],
)
def test_what_was_understood_is_one_line(tmp_path, header, labels, description, line):
    text = table(*labels).replace("text\tlabel", header)
    assert find_task("mine", write(tmp_path, "train.tsv", text, description)).describe() == line


def test_many_classes_are_cut_in_that_line(tmp_path):
    task = find_task("mine", write(tmp_path, "train.tsv", table(*(f"w{n:02}" for n in range(30)))))
    assert "; 30 classes: w00, w01, " in task.describe() and task.describe().endswith(", w19, ...; 30 rows")
    pair = Task("pair", ("a", "b"))
    assert pair.describe() == "text: `a`, `b`; label: `label`; 2 classes: 0, 1"


@pytest.mark.parametrize(
    ("labels", "description", "told"),
    [
        (
            ("1", "n/a", "2"),
            None,
            "line 3: the label 'n/a' is a word among numbers, so all are read as classes",
        ),
        (("1.5", "1", "nan"), None, "train.tsv line 4: the label 'nan' is a word among numbers"),
        (range(11), None, "11 different labels in the column 'label': 0, 1, 2, ...; they are read as classes; \"regr"),
        (range(10), None, None),
        (("1", "n/a", "2"), {"ignore_labels": ["n/a"]}, None),
        (("1", "a", "b"), None, None),
        (range(11), {"regression": False}, None),
        (range(60), {"regression": False}, None),
        ("ab" * 30 + "c", None, "train.tsv line 62: the label 'c' has one row; is it a label?"),
        (("a", " b", "a"), None, "train.tsv line 3: the label ' b' begins or ends with a space; is it a label?"),
    ],
)
def test_what_may_be_meant_otherwise_is_warned_of(tmp_path, labels, description, told):
    task = find_task("mine", write(tmp_path, "train.tsv", table(*labels), description))
    assert task.kind is CLASSIFICATION and len(task.warnings) == (told is not None)
    assert told is None or told in task.warnings[0]


def test_empty_labels_are_a_class_or_left_out_where_the_description_lists_them(tmp_path):
    for description, labels in (({"ignore_labels": [""]}, ["a", "b"]), ({"labels": ["a", "b", ""]}, ["a", "", "b"])):
        folder = write(tmp_path, "train.tsv", table("a", "", "b"), description)
        task = find_task("mine", folder)
        assert [row.label for row in TaskFile(folder / "train.tsv", task)] == labels


# --- without a dev file


def test_a_part_of_the_training_rows_is_dev_where_there_is_no_dev_file(tmp_path):
    folder = write(tmp_path, "train.tsv", table(*(["a", "b"] * 150)) + "x7\ta\n")
    task = find_task("mine", folder, 0.2)
    train, dev = ([row.texts for row in TaskFile(folder / f"{part}.tsv", task)] for part in ("train", "dev"))
    assert not set(train) & set(dev) and len(train) + len(dev) == 301 and 40 < len(dev) < 80
    assert (("x7",) in train) is (("x7",) not in dev)  # rows with the same text stay together
    # Whatever the order of the rows is, the same ones are dev.
    header, *rows = (folder / "train.tsv").read_text().splitlines()
    write(folder, "train.tsv", "\n".join([header, *reversed(rows), ""]))
    assert [row.texts for row in TaskFile(folder / "dev.tsv", task)] == dev[::-1]
    assert task.describe().endswith("2 classes: a, b; 301 rows; 0.2 of them for dev")
    # A file of another name is read whole.
    write(folder, "train_aug.tsv", table("a", "b", "a"))
    assert len(list(TaskFile(folder / "train_aug.tsv", task))) == 3


def test_too_few_rows_for_a_dev_part_and_a_dev_file_beside_it_are_told(tmp_path):
    folder = write(tmp_path, "train.tsv", table("a", "b"))
    with pytest.raises(UserError, match="train.tsv, dev rows: no rows .--dev_fraction 0.001"):
        list(TaskFile(folder / "dev.tsv", find_task("mine", folder, 0.001)))
    with pytest.raises(UserError, match="dev.tsv: no such file; put one there, or give every step --dev_fraction 0.1"):
        TaskFile(folder / "dev.tsv", find_task("mine", folder))
    with pytest.raises(UserError, match="is for data of your own without a dev file; SST-2 has one"):
        find_task("sst-2", folder, 0.1)
    write(folder, "dev.tsv", table("a"))
    with pytest.raises(UserError, match="stands for a missing dev file, but there is .*dev.tsv"):
        find_task("mine", folder, 0.1)


def test_augmentation_asks_for_dev_rows_before_its_work(tmp_path):
    write(tmp_path / "mine", "train.tsv", table("a", "b"))
    found = call_script("data_augmentation.py", "--task_name", "mine", "--glue_dir", tmp_path)
    assert found.returncode == 2 and "dev.tsv: no such file; put one there, or give every step --dev" in found.stderr


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
PARTS = ("train", "dev", "train_aug")


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
    """Pairs with a score, without a task.json and without a dev file."""
    folder.mkdir()
    for name, count in (("train", 42), ("test", 7)):
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
    teacher, data = folder / "teacher", folder / "glue" / "reviews"
    split = [] if request.param == "csv" else ["--dev_fraction", 0.25]
    names = {"TEACHER": teacher, "DATA": data, "GLUE": folder / "glue", "VECTORS": folder / "glove.txt"}
    names |= {
        "CORPUS": folder / "corpus.txt",
        "OUT2": folder / "2",
        "OUT3": folder / "3",
        "STUDENT": folder / "student",
    }
    for command in (
        "data_augmentation.py --task_name reviews --glue_dir GLUE --pretrained_bert_model TEACHER --glove_embs VECTORS "
        "--N 3 --M 4",
        "pregenerate_training_data.py --train_corpus CORPUS --bert_model TEACHER --output_dir OUT2 --max_seq_len 31 "
        "--epochs_to_generate 1",
        "general_distill.py --pregenerated_data OUT2 --teacher_model TEACHER --student_model STUDENT --output_dir OUT3 "
        "--max_seq_length 31 --max_steps 3",
    ):
        call(*flags_from(command, **names), *(split if command.startswith("data") else ()))
    common = "--task_name reviews --data_dir DATA --teacher_model TEACHER --train_batch_size 13 --max_steps 9 "
    common = [*split, *flags_from(f"{common} --eval_step 5 --max_seq_length 31", **names)]
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


@pytest.mark.slow
def test_augmentation_writes_the_file_s_own_kind(finished):
    folder, data, _ = finished
    kind = ".csv" if (data / "train.csv").exists() else ".jsonl"
    task = find_task("reviews", data, None if kind == ".csv" else 0.25)
    rows, widened = list(TaskFile(data / f"train{kind}", task)), list(TaskFile(data / f"train_aug{kind}", task))
    assert len(widened) > len(rows)
    assert [row.columns for row in rows] == [row.columns for row in widened if row.columns in [r.columns for r in rows]]
    for row in widened:  # the other columns stay
        assert any(
            row.label == original.label and list(row.columns)[0] == list(original.columns)[0] for original in rows
        )
    if kind == ".csv":
        assert any(row.texts[0].startswith('" so "') for row in widened)


@pytest.mark.slow
def test_no_step_trains_on_dev_rows(finished):
    folder, data, printed = finished
    if (data / "dev.csv").exists():
        return
    task = find_task("reviews", data, 0.25)
    train, dev, widened = ([row.columns["id"] for row in TaskFile(data / f"{name}.jsonl", task)] for name in PARTS)
    assert set(widened) == set(train) and not set(train) & set(dev)
    for place in (folder / "4", folder / "5", folder / "teacher" / "reviews"):
        assert json.loads((place / "run.json").read_text())["settings"]["dev_fraction"] == 0.25
    assert f"train.jsonl, dev rows: {len(dev)} rows" in printed[2]
    assert "--dev_fraction 0.25" in printed[0].splitlines()[-1]  # the next step's command
    steps = ["--student_model", folder / "3", "--output_dir", folder / "other"]
    usual = ["--task_name", "reviews", "--data_dir", data, "--teacher_model", folder / "teacher", *steps]
    usual += ["--max_seq_length", 31, "--max_steps", 9, "--dev_fraction", 0.5]
    found = call_script("task_distill.py", *usual, "--aug_train")
    assert found.returncode == 2 and "train_aug.jsonl: may hold dev rows; made again without them by:" in found.stderr
    assert re.search(
        r"data_augmentation\.py .*--dev_fraction 0\.5 .*--overwrite_output --N 3 --M 4", found.stderr.strip()
    )
    found = call_script("task_distill.py", *usual, "--no_finetune")
    told = "reviews: was not trained with --dev_fraction 0.5 and may know the dev rows; leave out --no_finetune, or"
    assert found.returncode == 2 and told in found.stderr


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_changed_description_is_another_input(finished):
    folder, data, _ = finished
    description = data / "task.json"
    before = description.read_text() if description.exists() else None
    became = "has changed" if before else "was no input"
    description.write_text(json.dumps({**json.loads(before or "{}"), "epochs": 1}))
    try:
        found = call_script(
            "task_distill.py",
            *([] if (data / "dev.csv").exists() else ["--dev_fraction", 0.25]),
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
    assert found.returncode == 2 and f"task.json {became}" in found.stderr


def test_an_unknown_task_names_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call_script("task_distill.py", "--task_name", "reviews", "--data_dir", tmp_path)
    assert found.returncode == 2 and found.stderr.startswith("error: --task_name reviews: neither one of CoLA")
