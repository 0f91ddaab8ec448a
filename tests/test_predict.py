"""--predict_file: a finished model answers any file's texts, in order, in little memory."""

import io
import json
import shutil

import pytest
import torch
from pipeline import Killed
from tiny import VOCABULARY, call_script, make_tokenizer, names

from transformer import predict
from transformer.files import UserError
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.own_tasks import as_trained, find_task, stored_task
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.regression import REGRESSION
from transformer.tasks.spans import SPANS
from transformer.tasks.tokens import TOKENS
from transformer.tokenization import BertTokenizer

TEXTS = ["a good film", "", 'the "plot" is dull , and the song is very , very poor .', "warm", "unknown"]


@pytest.fixture(scope="module")
def student(pipeline):
    return pipeline.folder / "5"


def answer(student, source, output, *flags):
    """The lines of predictions.tsv, as lists of cells, header first."""
    process = call_script(
        "task_distill.py",
        "--do_predict",
        "--predict_file",
        source,
        "--student_model",
        student,
        "--output_dir",
        output,
        *flags,
    )
    assert process.returncode == 0, process.stderr
    return [line.split("\t") for line in (output / "predictions.tsv").read_text().split("\n")[:-1]]


def write(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def make_model(folder, num_labels=2, kind=CLASSIFICATION, **values):
    """A random model from elsewhere for a kind of task, without a record."""
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, **values
    )
    config.__dict__.setdefault("id2label", {index: f"LABEL_{index}" for index in range(num_labels)})
    config.num_labels = num_labels
    folder.mkdir()
    kind.model(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_every_line_is_answered_in_order_by_the_model_s_folder_alone(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no task's folder, no teacher
    source = write(tmp_path, "texts.txt", "\n".join(TEXTS))
    header, *rows = answer(student, source, tmp_path / "out")
    assert header == ["sentence", "label", "negative", "positive"]
    assert [row[0] for row in rows] == TEXTS and names(tmp_path / "out") == {"predictions.tsv"}
    tokenizer = BertTokenizer.from_pretrained(student)
    model = TinyBertForSequenceClassification.from_pretrained(student).eval()
    for text, label, *probabilities in rows:
        ids, _ = tokenizer.encode_pair(tokenizer.ids(text), max_length=31)
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0][0].softmax(0).tolist()
        assert list(map(float, probabilities)) == pytest.approx(expected, abs=1e-4)
        assert label == ("negative", "positive")[expected.index(max(expected))]


def test_a_model_found_by_the_name_of_its_task_answers_whatever_its_own_folder_says(student, tmp_path, monkeypatch):
    monkeypatch.setattr("transformer.flags.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(student, "5_task_distill_out/reviews")
    write(tmp_path, "texts.txt", "good\nbad")
    process = call_script("task_distill.py", "--task_name", "reviews", "--predict_file", "texts.txt")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "5_task_distill_out/reviews/predictions.tsv").read_text().count("\n") == 3


def test_chunks_and_batches_change_nothing(student, tmp_path, monkeypatch):
    source = write(tmp_path, "texts.txt", "\n".join(TEXTS * 5))
    whole = answer(student, source, tmp_path / "1")
    monkeypatch.setattr(predict, "CHUNK_ROWS", 3)
    assert answer(student, source, tmp_path / "2", "--eval_batch_size", 2) == whole
    assert answer(student, source, tmp_path / "3", "--limit", 4) == whole[:5]


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.csv", 'id,Sentence\n1,"a good, ""warm""\nfilm"\n2,dull\n'),
        ("t.jsonl", '{"sentence": "a good, \\"warm\\"\\nfilm", "id": 1}\n{"sentence": "dull"}\n'),
        ("t.tsv", 'sentence\tid\na good, "warm" film\t1\ndull\t2\n'),
    ],
)
def test_a_table_is_read_by_its_columns_and_written_as_one_line_a_row(student, tmp_path, name, text):
    _, *rows = answer(student, write(tmp_path, name, text), tmp_path / "out")
    assert [row[0] for row in rows] == ['a good, "warm" film', "dull"] and all(len(row) == 4 for row in rows)


def test_standard_input_is_answered_on_standard_output_and_the_log_stays_out_of_it(student, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a good film\ndull")))
    process = call_script("task_distill.py", "--predict_file", "-", "--student_model", student)
    assert process.returncode == 0, process.stderr
    rows = [line.split("\t") for line in process.stdout.splitlines()]
    assert [row[0] for row in rows] == ["sentence", "a good film", "dull"]
    assert "evaluation step" in process.stderr


def test_a_killed_run_leaves_the_answers_of_before(student, tmp_path, monkeypatch):
    source = write(tmp_path, "texts.txt", "\n".join(TEXTS))
    before = answer(student, source, tmp_path / "out")
    monkeypatch.setattr(predict, "CHUNK_ROWS", 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        calls = []

        def die(*_):
            calls.append(1)
            if len(calls) == 2:
                raise Killed
            return [["negative", "1", "0"]] * 2

        patch.setattr("transformer.tasks.classification.Classification.answer_rows", die)
        answer(student, source, tmp_path / "out")
    assert (tmp_path / "out" / "predictions.tsv").read_text().count("\n") == len(before)
    assert answer(student, source, tmp_path / "out") == before


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("t.txt", "", "t.txt: no texts to answer"),
        ("t.csv", "id,body\n1,x\n", "t.csv line 1: no column 'sentence' for SST-2; found id, body"),
        ("t.csv", "sentence\nx,y\n", "t.csv line 2: 2 columns, expected 1; a text with ',' in it"),
        ("t.tsv", "sentence\n", "t.tsv: no rows"),
        ("t.txt", None, "t.txt: no such file"),
        ("predictions.tsv", "sentence\nx\n", "predictions.tsv: the answers would take its place; --output_dir writes"),
    ],
)
def test_what_cannot_be_answered_is_told_in_one_line_and_nothing_is_written(student, tmp_path, name, text, told):
    if text is not None:
        write(tmp_path, name, text)
    before = names(tmp_path)
    flags = ["--student_model", student, "--output_dir", tmp_path]
    process = call_script("task_distill.py", "--predict_file", tmp_path / name, *flags)
    assert process.returncode == 2 and told in process.stderr and names(tmp_path) == before


def test_a_model_without_a_classifier_is_told_in_one_line(pipeline, tmp_path):
    source = write(tmp_path, "t.txt", "x")
    process = call_script("task_distill.py", "--predict_file", source, "--student_model", pipeline.folder / "3")
    assert process.returncode == 2 and process.stderr.startswith(f"error: {pipeline.folder}/3: has no classifier")


def test_a_classifier_from_elsewhere_answers_too(tmp_path):
    model = make_model(tmp_path / "model", 3)
    header, *rows = answer(model, write(tmp_path, "t.txt", "good\nbad\n"), tmp_path / "out")
    assert header == ["text", "label", "0", "1", "2"] and [row[0] for row in rows] == ["good", "bad"]
    assert len(answer(model, write(tmp_path, "t.csv", "n,sentence\n1,good\n"), tmp_path / "out")) == 2


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("t.txt", "good film.\n\nbad\n", ["good film .", "", "bad"]),
        ("t.jsonl", '{"tokens": ["New York", "is"]}\n{"tokens": ["bad"]}\n', ["New\u00a0York is", "bad"]),
        ("t.csv", "text,n\na film.,1\n", ["a film."]),
        ("t.conll", "a\nfilm\n\nbad\n", ["a film", "bad"]),
    ],
)
def test_a_model_of_token_labels_from_elsewhere_answers_with_its_own_names(tmp_path, name, text, expected):
    names_of = {0: "O", 1: "B-PER", 2: "I-PER"}
    model = make_model(tmp_path / "model", 3, TOKENS, id2label=names_of)
    header, *rows = answer(model, write(tmp_path, name, text), tmp_path / "out")
    assert header == ["tokens", "labels", "lowest probability"] and [row[0] for row in rows] == expected
    for tokens, labels, _ in rows:
        assert len(labels.split()) == len(tokens.split(" ") if tokens else [])
        assert {*labels.split()} <= {*names_of.values()}


ASKED = {"question": "who ?", "context": "good film"}
QUESTIONS = [{"id": key, "question": "who ?"} for key in "ab"]
SQUAD = {"data": [{"paragraphs": [{"context": "good film", "qas": QUESTIONS}]}]}


@pytest.mark.parametrize(
    "name, text, ids",
    [
        ("t.json", json.dumps(SQUAD), ["a", "b"]),
        ("t.jsonl", f"{json.dumps(ASKED | {'id': 7})}\n{json.dumps(ASKED)}\n", ["7", ""]),
        ("t.csv", "context,Id,question\ngood film,x,who ?\n", ["x"]),
        ("t.csv", "context,question\ngood film,who ?\n", None),
        ("t.txt", "who ?\tgood film\n", None),
    ],
)
def test_answers_to_questions_stand_beside_the_ids_of_their_file(tmp_path, name, text, ids):
    model = make_model(tmp_path / "model", kind=SPANS)
    header, *rows = answer(model, write(tmp_path, name, text), tmp_path / "out")
    assert header == [*(["id"] if ids else []), "question", "context", "answer", "probability"]
    assert ids is None or [row[0] for row in rows] == ids
    assert all(row[-4:-2] == ["who ?", "good film"] and row[-2] in ("good", "film", "good film") for row in rows)


def test_questions_in_a_table_without_answers_are_predicted_by_their_ids_too(tmp_path):
    folder = tmp_path / "qa"
    write(folder, "train.jsonl", json.dumps(ASKED | {"answers": []}))
    write(folder, "test.csv", "id,context,question\nx,good film,who ?\ny,a song,who ?\n")
    flags = ["--student_model", make_model(tmp_path / "model", kind=SPANS), "--output_dir", tmp_path]
    process = call_script("task_distill.py", "--task_name", "qa", "--data_dir", folder, "--do_predict", *flags)
    assert process.returncode == 0, process.stderr
    assert list(json.loads((tmp_path / "predictions.json").read_text())) == ["x", "y"]


@pytest.mark.parametrize("told", [{}, {"task": {"null_threshold": -99.0}}])
def test_a_model_of_answers_without_a_threshold_for_none_is_told(tmp_path, told):
    model, source = make_model(tmp_path / "model", kind=SPANS, **told), write(tmp_path, "t.txt", "who ?\tgood film\n")
    process = call_script("task_distill.py", "--predict_file", source, "--student_model", model)
    assert process.returncode == 0, process.stderr
    warning = f'warning: {model}/config.json: has no threshold for "no answer", so every question gets an answer; '
    warning += 'a model of SQuAD 2.0 may have "task": {"null_threshold": 0} there\n'
    assert (warning in process.stdout) is (not told)
    [_, row] = (model / "predictions.tsv").read_text().splitlines()
    assert (row.split("\t")[2] == "") is bool(told)


def test_answers_in_place_of_earlier_ones_are_told(tmp_path):
    source = write(tmp_path, "t.txt", "good\n")
    flags = ["--predict_file", source, "--student_model", make_model(tmp_path / "model"), "--output_dir", tmp_path]
    first, second = (call_script("task_distill.py", *flags).stdout for _ in range(2))
    assert "predictions.tsv (in place of an earlier file)\n" in second and "in place of" not in first


def test_pairs_stand_on_a_line_with_a_tab_between_and_a_score_is_one_column(tmp_path):
    told = {"name": "alike", "text": ["one", "two"], "label": "score", "max_seq_length": 23}
    model = make_model(tmp_path / "model", 1, task=told)
    task = stored_task(model)
    assert (task.name, task.text_columns, task.max_seq_length) == ("alike", ("one", "two"), 23)
    assert task.kind is REGRESSION and task.labels == ()
    header, row = answer(model, write(tmp_path, "t.txt", "good\tbad\n"), tmp_path / "out")
    assert header == ["one", "two", "score"] and row[:2] == ["good", "bad"] and float(row[2]) == pytest.approx(0, abs=1)
    with pytest.raises(UserError, match="t.txt line 2: 1 columns, expected one and two with a tab between"):
        list(predict.read_rows(str(write(tmp_path, "t.txt", "a\tb\nc\n")), task))


@pytest.mark.parametrize("told", [["x"], {"text": 3}, {"max_seq_length": "long"}, {"colour": "red"}, "reviews"])
def test_a_task_in_the_config_that_is_none_is_told_in_one_line(tmp_path, told):
    model = make_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"task": told}))
    for read in (stored_task, lambda folder: as_trained(find_task("SST-2"), folder)):
        with pytest.raises(UserError, match="config.json: task"):
            read(model)
