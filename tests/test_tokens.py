"""Token labels: the kind's numbers, and a task of this kind through every step."""

import itertools
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pipeline import ends_the_same
from seqeval import metrics
from tiny import NOUNS, ROOT, call_script, make_teacher, make_tokenizer

from data_augmentation import augment_rows
from transformer.evaluation import Evaluator
from transformer.files import UserError
from transformer.modeling import BertConfig, TinyBertForTokenClassification
from transformer.outputs import read_results
from transformer.own_tasks import find_task, stored_task
from transformer.processes import Processes
from transformer.settings import Lengths
from transformer.tables import open_table
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.task import Task, TaskFile, read_rows, unlabelled_rows
from transformer.tasks.tokens import TOKENS, entities, windows

TASK = Task("t", ("tokens",), "tags", ("B-X", "I-X", "O"), TOKENS.offered, kind=TOKENS, train_file="train.conll")
SCHEMES = {
    "IOB": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],  # IOB1 too: the random sequences begin entities with I
    "IOBES": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"],
    "BILOU": ["O", "B-PER", "I-PER", "L-PER", "U-PER", "B-LOC", "I-LOC", "L-LOC", "U-LOC"],
}


def arrays(sentences, labels):
    return np.fromiter((tuple(labels.index(label) for label in each) for each in sentences), object)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore::UserWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_are_seqeval_s(scheme):
    rng, labels = random.Random(scheme), SCHEMES[scheme]
    task = Task("t", ("tokens",), "tags", tuple(labels), TOKENS.offered, kind=TOKENS)
    for _ in range(500):
        lengths = [rng.randint(1, 9) for _ in range(rng.randint(1, 4))]
        gold = [[rng.choice(labels) for _ in range(length)] for length in lengths]
        # Near the gold labels, so that some entities are right.
        found = [[rng.choice(labels) if rng.random() < 0.3 else label for label in each] for each in gold]
        # seqeval reads BILOU's last and unit as entities of their own: in its own words they are E and S.
        theirs = [[[label.replace("L-", "E-").replace("U-", "S-") for label in s] for s in g] for g in (gold, found)]
        expected = {
            "f1": metrics.f1_score(*theirs, zero_division=0),
            "precision": metrics.precision_score(*theirs, zero_division=0),
            "recall": metrics.recall_score(*theirs, zero_division=0),
            "acc": metrics.accuracy_score(*theirs),
        }
        assert TOKENS.score(task, arrays(found, labels), arrays(gold, labels)) == pytest.approx(expected)


def test_labels_without_a_prefix_are_runs_of_one_type():
    assert entities(["PER", "PER", "O", "LOC", "PER"]) == {("PER", 0, 2), ("LOC", 3, 4), ("PER", 4, 5)}
    assert entities(["O", "O"]) == set()


def test_resampled_rows_cost_no_second_look_at_the_labels():
    gold = arrays([["B-X", "I-X"], ["O"], ["B-X"]], TASK.labels)
    found = arrays([["B-X", "O"], ["O"], ["B-X"]], TASK.labels)
    [counts] = TOKENS.evidence(TASK, found, gold)
    assert counts.tolist() == [[0, 1, 1, 1, 2], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert TOKENS.metrics_of(TASK, counts[[2, 2, 0]]) == TOKENS.score(TASK, found[[2, 2, 0]], gold[[2, 2, 0]])


def test_rows_of_other_lengths_with_one_label_alone_are_the_same_answer():
    assert TOKENS.different(arrays([["O"], ["O", "O"]], TASK.labels)) == 1
    assert TOKENS.different(arrays([["O"], ["B-X", "O"]], TASK.labels)) == 2


def test_every_word_is_answered_once_inside_a_window_that_holds_it():
    rng = random.Random(3)
    for _ in range(500):
        lengths, room = [rng.choice((1, 1, 2, 3, 9)) for _ in range(rng.randint(1, 60))], rng.randint(1, 12)
        answered = []
        for first, last, begin, end in windows(lengths, room):
            assert first <= begin < end <= last
            assert sum(min(length, room) for length in lengths[first:last]) <= room
            answered += range(begin, end)
        assert answered == list(range(len(lengths)))
    # In the middle of a long text a word is answered with a fourth of the room on either side of it.
    for first, last, begin, end in list(windows([1] * 100, 20))[1:-1]:
        assert begin - first >= 5 and last - end >= 5


SMALL = BertConfig(vocab_size=99, num_labels=3, hidden_size=12, num_hidden_layers=1, num_attention_heads=2)


def encode(rows, length, labels=("O", "B-X", "I-X"), limit=None):
    return TOKENS.encode(rows, make_tokenizer(), Lengths(length), labels, limit)


def test_the_first_piece_of_a_token_carries_its_label(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("films\tB-X\n.\tO\n\u200b\tI-X\n\na\tO\n")
    sequences, tokenizer = encode(TaskFile(path, TASK), 31), make_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(sequences.ids.tolist())
    assert tokens == ["[CLS]", "film", "##s", ".", "[UNK]", "[SEP]", "[CLS]", "a", "[SEP]"]
    batch = sequences.batch(np.array([1, 0]))
    assert batch["answered"].tolist() == [[0, 1, 1, 1], [1, 1, 3, 4]]
    assert batch["outputs"].tolist() == [3, 0, 1, 2] and batch["labels"].tolist() == [0, 1, 0, 2]


def test_a_long_sentence_is_answered_token_by_token_from_its_windows(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("".join(f"{NOUNS[i % 5]} {('O', 'B-X')[i % 2]}\n" for i in range(50)) + "\na O\n")
    sequences = encode(TaskFile(path, TASK), 12)
    assert sequences.rows.tolist() == [*[0] * (len(sequences) - 1), 1] and sequences.num_rows == 2
    assert sequences.lengths.max() == 12 and sequences.labels.tolist() == [*[0, 1] * 25, 0]
    vocab = make_tokenizer().vocab
    starts = sequences.offsets[:-1].repeat(np.diff(sequences.answer_offsets))
    assert sequences.ids[starts + sequences.answered].tolist() == [
        *(vocab[NOUNS[i % 5]] for i in range(50)),
        vocab["a"],
    ]
    outputs = F.one_hot(torch.from_numpy(sequences.labels), 3).float()
    answers, gold = TOKENS.answers(TASK, outputs, sequences, ("O", "B-X", "I-X"))
    assert answers[0] == gold[0] == (2, 0) * 25 and answers[1] == (2,)  # as the task has them
    assert TOKENS.predictions(TASK, outputs, sequences, ("O", "B-X", "I-X")) == [" ".join(["O", "B-X"] * 25), "O"]
    assert TOKENS.answer_rows(TASK, outputs, sequences, ("O", "B-X", "I-X"))[1] == ["O", "0.5761"]
    assert len(encode(TaskFile(path, TASK), 12, limit=1)) == len(sequences) - 1


def test_a_length_without_room_for_a_token_is_told(tmp_path):
    (tmp_path / "train.conll").write_text("a O\n")
    with pytest.raises(UserError, match="--max_seq_length 2: expected 3 or more"):
        encode(TaskFile(tmp_path / "train.conll", TASK), 2)
    assert len(encode(TaskFile(tmp_path / "train.conll", TASK), 3)) == 1


def test_losses_are_means_over_sentences_of_means_over_tokens():
    rng = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(5, 3, generator=rng) for _ in range(2))
    targets, examples = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1])
    gold = -student.log_softmax(1)[range(5), targets]
    soft = -((teacher / 2).softmax(1) * (student / 2).log_softmax(1)).sum(1)
    assert TOKENS.row_losses(student, targets, examples).tolist() == pytest.approx(
        [gold[:3].mean().item(), gold[3:].mean().item()]
    )
    assert TOKENS.gold_loss(student, targets, examples=examples).item() == pytest.approx(
        (gold[:3].mean() + gold[3:].mean()).item() / 2
    )
    student.requires_grad_()
    loss = TOKENS.prediction_loss(student, teacher, 2.0, examples)
    assert loss.item() == pytest.approx((soft[:3].mean() + soft[3:].mean()).item() / 2)
    loss.backward()
    halves = [student.grad.clone()]
    student.grad = None
    for part, weight in ((slice(0, 3), 0.5), (slice(3, 5), 0.5)):  # as on two processes
        same = torch.zeros(part.stop - part.start, dtype=torch.long)
        (TOKENS.prediction_loss(student[part], teacher[part], 2.0, same) * weight).backward()
    torch.testing.assert_close(student.grad, halves[0])


# --- files


def make_task(folder, name, text, **description):
    (folder / "names").mkdir(exist_ok=True)
    (folder / "names" / name).write_text(text, encoding="utf-8")
    if description:
        (folder / "names" / "task.json").write_text(json.dumps(description))
    return find_task("names", folder / "names")


SENTENCES = [(["Anna", "saw", "New York"], ["B-PER", "O", "B-LOC"]), (["他"], ["O"])]
CONLL = "-DOCSTART- -X- O\n\nAnna NNP B-PER\nsaw VBD O\nNew\u00a0York NNP B-LOC\n\n\n他 PN O\n"


@pytest.mark.parametrize(
    "name, text",
    [
        ("train.conll", CONLL),
        ("train.txt", CONLL.replace(" ", "\t").replace("\u00a0", " ")),
        ("train.conll", f"# a comment, with words\n{CONLL}\n"),
        ("train.jsonl", "".join(json.dumps({"tokens": a, "tags": b}) + "\n" for a, b in SENTENCES)),
        ("train.jsonl", "".join(json.dumps({"ner_tags": b, "id": 1, "Tokens": a}) + "\n" for a, b in SENTENCES)),
    ],
)
def test_sentences_are_read_from_columns_and_from_lists(tmp_path, name, text):
    task = make_task(tmp_path, name, text)
    assert task.kind is TOKENS and task.labels == ("B-LOC", "B-PER", "O") and task.rows == 2
    assert task.metrics == ("f1", "precision", "recall", "acc")
    rows = list(TaskFile(tmp_path / "names" / name, task))
    assert [(row.texts[0].split(" "), row.label) for row in rows] == [
        (["Anna", "saw", "New\u00a0York"], ["B-PER", "O", "B-LOC"]),
        (["他"], ["O"]),
    ]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("train.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "X"]}\n{"tokens": ["a", "b"], "tags": ["O"]}\n',
         r"train.jsonl line 2: label \['O'\], expected a tag for each of its 2 tokens; found 1"),
        ("train.jsonl", '{"tokens": ["a"], "tags": ["X"]}\n{"tokens": ["a", " "], "tags": ["O", "O"]}\n',
         "line 2: field 'tokens', expected tokens, none of them empty"),
        ("train.jsonl", '{"tokens": ["a"], "tags": ["X"]}\n{"tokens": ["a", {}], "tags": ["O", "O"]}\n',
         r"line 2: field 'tokens' is \[\"a\", \{\}\], expected text or a number, or a list of them"),
        ("train.conll", "a B-X\nb O\n\nc\n", "train.conll line 4: 1 columns, expected 2"),
        ("train.conll", "a B-X\n\nb\t\nc O\n", r"line 3: label \['', 'O'\], expected tags, none of them empty"),
        ("train.txt", "a good film\nit is a bad one\n", "train.txt line 2: 5 columns, expected 3; a .txt file here "
         "has a token and its tag on each line, in CoNLL's layout; texts with labels go into .tsv, .csv or .jsonl$"),
        ("train.txt", "good\nbad\n", "train.txt line 1: a .txt file here has a token and its tag on each line"),
        ("train.conll", "a\nb\n", "train.conll line 1: no column for the label .*found tokens"),
        ("train.conll", "\n\n", "train.conll: the file is empty"),
        ("train.conll", "a O\n\nb O\n", "every row has the label 'O'; expected two labels or more"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_token_labels_is_told_in_one_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        task = make_task(tmp_path, name, text)
        list(TaskFile(tmp_path / "names" / name, task))


def test_one_label_beside_tokens_is_that_of_the_text_and_a_list_that_of_the_tokens(tmp_path):
    row = {"sentence": "a b.", "tokens": ["a", "b", "."]}
    text = "".join(json.dumps(row | {"label": label}) + "\n" for label in ("good", "bad"))
    task = make_task(tmp_path, "train.jsonl", text)
    assert task.kind is CLASSIFICATION and task.text_columns == ("sentence",) and task.labels == ("bad", "good")
    for tags in (["O", "X", "O"], "O X O"):
        task = make_task(tmp_path, "train.jsonl", json.dumps(row | {"tags": tags}) + "\n")
        assert task.kind is TOKENS and task.text_columns == ("tokens",) and task.labels == ("O", "X")
    with pytest.raises(UserError, match="metric is 'mcc', expected one of f1, precision, recall, acc$"):
        make_task(tmp_path, "train.jsonl", json.dumps(row | {"tags": tags}) + "\n", metric="mcc")


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("#Oslo\nis\n", ["#Oslo", "is"]),  # without tags
        ("# newdoc\n# text = a b\n#\tO\nb\tX\n", ["#", "b"]),
        ("# newdoc id = 1\n# NN B O\nb V B X\n", ["#", "b"]),
        ("#a\n", ["#a"]),
    ],
)
def test_a_comment_is_a_line_with_other_columns_than_the_tokens_have(tmp_path, text, tokens):
    (tmp_path / "t.conll").write_text(text)
    assert [row["tokens"] for _, row in open_table(tmp_path / "t.conll")] == [tokens]


def test_an_unknown_label_of_the_dev_set_is_told_with_its_line(tmp_path):
    task = make_task(tmp_path, "train.conll", "a B-X\nb O\n")
    (tmp_path / "names" / "dev.conll").write_text("a O\n\nb B-Y\nc o\n")
    with pytest.raises(UserError, match=r"dev.conll line 3: label .*, expected each tag one of B-X, O; found 'B-Y'"):
        list(TaskFile(tmp_path / "names" / "dev.conll", task))


def test_a_text_a_line_is_cut_into_words_marks_and_characters(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Anna's film, 1.5\n他来了。\nשלום עולם!\n", encoding="utf-8")
    expected = ["Anna ' s film , 1 . 5", "他 来 了 。", "שלום עולם !"]
    assert [row.texts[0] for row in read_rows(path, TASK)] == expected
    assert [row.texts[0] for row in unlabelled_rows(path, TASK)] == expected
    sequences = encode(read_rows(path, TASK), 31)
    assert sequences.labels is None and np.diff(sequences.answer_offsets).tolist() == [8, 4, 3]


@pytest.mark.parametrize("texts", [["", "a film", "\u200b", "bad", ""], [" ", ""]])
def test_a_line_without_words_has_no_labels_and_keeps_its_place(tmp_path, texts):
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    labels, model = ("O", "B-X", "I-X"), TinyBertForTokenClassification(SMALL)
    sequences = encode(read_rows(tmp_path / "texts.txt", TASK), 31)
    outputs = Evaluator(2, Processes(torch.device("cpu"))).outputs(model, sequences)
    found = TOKENS.answer_rows(TASK, outputs, sequences, labels)
    assert [len(answer.split()) for answer, _ in found] == [len(text.strip("\u200b").split()) for text in texts]
    assert all((sure == "") == (answer == "") for answer, sure in found)


# --- augmentation


class Proposer:
    """Stands in for the models: every word may become "new"."""

    def __init__(self):
        self.tokenizer = make_tokenizer()

    def words(self, text):
        return [word for word, _ in self.tokenizer.words_and_ids(text)]

    def candidates(self, texts):
        return {text: (words := self.words(text), dict.fromkeys(range(len(words)), ["new"])) for text in texts}


@pytest.mark.parametrize("name", ["train.conll", "train.jsonl"])
def test_augmentation_replaces_whole_tokens_outside_entities(tmp_path, name):
    sentence = (["Anna", "saw", "a.b", "New York", "twice", "Ångström"], ["B-PER", "O", "O", "B-LOC", "O", "O"])
    text = json.dumps(dict(zip(("tokens", "tags"), sentence, strict=True))) + "\n"
    if name == "train.conll":
        text = "".join(f"{token}\t{tag}\n" for token, tag in zip(*sentence, strict=True))
    task = make_task(tmp_path, name, text)
    file = TaskFile(tmp_path / "names" / name, task)
    lines = augment_rows(file, Proposer(), 60, 0.5, 1, list(file), 0)
    (tmp_path / "names" / task.augmented_file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    first, *variants = [
        (row.texts[0].split(" "), row.label) for row in TaskFile(tmp_path / "names" / task.augmented_file, task)
    ]
    assert first == ([token.replace(" ", "\u00a0") for token in sentence[0]], sentence[1])
    assert len(variants) == 7  # three tokens may change: "a.b" is three words, and the others belong to entities
    for tokens, labels in variants:
        assert labels == sentence[1] and len(tokens) == 6
        changed = {place for place, pair in enumerate(zip(tokens, first[0], strict=True)) if len(set(pair)) > 1}
        assert changed and changed <= {1, 4, 5} and {tokens[place] for place in changed} == {"new"}


def test_tokens_of_entities_are_replaced_where_asked_by_others_with_their_label(tmp_path):
    text = "Anna B-PER\nsaw O\nNew B-LOC\nYork I-LOC\n\nBob B-PER\nsaw O\nOslo B-LOC\n"
    task = make_task(tmp_path, "train.conll", text)
    file = TaskFile(tmp_path / "names" / "train.conll", task)
    known = TOKENS.known(file)
    assert known == {"B-LOC": ["New", "Oslo"], "B-PER": ["Anna", "Bob"], "I-LOC": ["York"]}
    lines = augment_rows(file, Proposer(), 60, 0.5, 1, list(file), 0, known)
    (tmp_path / "names" / "train_aug.conll").write_text("".join(f"{line}\n" for line in lines))
    rows = {row.texts[0]: row.label for row in TaskFile(tmp_path / "names" / "train_aug.conll", task)}
    firsts = itertools.product(("Anna", "Bob"), ("saw", "new"), ("New", "Oslo"), ("York",))
    seconds = itertools.product(("Anna", "Bob"), ("saw", "new"), ("New", "Oslo"))
    assert rows == {" ".join(each): ["B-PER", "O", "B-LOC", "I-LOC"][: len(each)] for each in [*firsts, *seconds]}


# --- models


def test_hugging_face_reads_and_writes_the_same_head(tmp_path):
    from transformers import BertConfig as TheirConfig
    from transformers import BertForTokenClassification

    names = {0: "B-X", 1: "I-X", 2: "O"}
    sizes = {"vocab_size": 50, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 20, "max_position_embeddings": 31, "id2label": names}
    ids, mask = torch.arange(14).reshape(2, 7) + 1, torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    (tmp_path / "ours").mkdir()
    ours = TinyBertForTokenClassification(BertConfig(**sizes)).eval()
    ours.save_pretrained(tmp_path / "ours")
    theirs = BertForTokenClassification.from_pretrained(tmp_path / "ours").eval()
    assert theirs.config.id2label == names
    with torch.inference_mode():
        expected = theirs(ids, attention_mask=mask).logits
        torch.testing.assert_close(ours(ids, None, mask)[0], expected, atol=1e-6, rtol=0)
        other = BertForTokenClassification(TheirConfig(**sizes)).eval()
        other.save_pretrained(tmp_path / "theirs")
        read = TinyBertForTokenClassification.from_pretrained(tmp_path / "theirs").eval()
        torch.testing.assert_close(read(ids, None, mask)[0], other(ids, attention_mask=mask).logits, atol=1e-6, rtol=0)
    assert stored_task(tmp_path / "theirs").kind is TOKENS


# --- through the scripts


def make_data(folder):
    """The nouns of a sentence are names, the words before them belong to them where they are "good"."""
    rng, words = random.Random(5), ["good", "bad", "the", "very", ".", *NOUNS]
    folder.mkdir(parents=True)
    for name, count in (("train", 153), ("dev", 17), ("test", 7)):
        lines = []
        for number in range(count):
            tokens = [rng.choice(words) for _ in range(45 if number == 3 else rng.randint(2, 11))]
            nouns = [token in NOUNS for token in tokens]
            good = [token == "good" and after for token, after in zip(tokens, [*nouns[1:], False], strict=True)]
            tags = ["O"] * len(tokens)
            for place, noun in enumerate(nouns):
                tags[place] = "B-GOOD" if good[place] else "O" if not noun else "B-THING"
                if noun and place and good[place - 1]:
                    tags[place] = "I-GOOD"
            pairs = zip(tokens, tags, strict=True)
            lines += [*(token if name == "test" else f"{token}\t{tag}" for token, tag in pairs), ""]
        (folder / f"{name}.conll").write_text("\n".join(lines), encoding="utf-8")
    (folder / "task.json").write_text('{"max_seq_length": 24}')
    return folder


def run(folder, *flags):
    sizes = ["--train_batch_size", 13, "--learning_rate", 3e-3, "--eval_step", 60]
    of_task = ["--task_name", "things", "--data_dir", folder / "things", "--teacher_model", folder / "teacher"]
    finished = call_script("task_distill.py", *of_task, *sizes, *flags)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of every step."""
    folder = tmp_path_factory.mktemp("tokens")
    # Small weights: with those of the other tests' teachers all tokens of a sentence end up alike.
    # No dropout, which several processes draw differently from one.
    sizes = {"max_position_embeddings": 31, "initializer_range": 0.05}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make_teacher(folder / "teacher", **sizes)
    make_teacher(folder / "3", hidden_size=12, num_hidden_layers=2, intermediate_size=20, **sizes)
    make_data(folder / "things")
    run(folder, "--do_finetune", "--num_train_epochs", 15)
    run(folder, "--student_model", folder / "3", "--output_dir", folder / "4")
    run(folder, *prediction(folder, "5"), "--num_train_epochs", 15, "--baseline")
    return folder


def prediction(folder, output):
    return ["--pred_distill", "--student_model", folder / "4", "--output_dir", folder / output]


@pytest.mark.slow
def test_the_student_finds_entities_and_the_report_tells_which(folder):
    teacher, student = (read_results(folder / name / "eval_results.txt") for name in ("teacher/things", "5"))
    assert list(student)[:6] == ["global_step", "f1", "precision", "recall", "acc", "eval_loss"]
    assert teacher["f1"] > 0.8 and student["f1"] > 0.6
    config = json.loads((folder / "5" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"] and config["task"]["text"] == ["tokens"]
    report = (folder / "5" / "report.md").read_text()
    assert "| entities in `dev.conll` | number | f1, teacher | precision, teacher" in report
    assert report.count("\n| GOOD |") == report.count("\n| THING |") == 1
    run(folder, "--do_eval", "--student_model", folder / "5", "--output_dir", folder / "evaluated")
    assert read_results(folder / "evaluated" / "eval_results.txt") == student


@pytest.mark.slow
def test_predictions_are_a_file_of_the_same_layout_and_a_line_for_each_text(folder, tmp_path):
    run(folder, "--do_predict", "--student_model", folder / "5", "--output_dir", tmp_path)
    tokens = (folder / "things" / "test.conll").read_text().rstrip("\n").split("\n")
    lines = (tmp_path / "things.conll").read_text().rstrip("\n").split("\n")
    assert [line.split("\t")[0] for line in lines] == tokens and len(tokens) > 45
    found = [line.split("\t")[1] for line in lines if line]
    assert {"B-THING", "O"} <= set(found) <= {"B-GOOD", "I-GOOD", "B-THING", "O"}
    (tmp_path / "texts.txt").write_text("the good film.\n\nbad")
    flags = ["--student_model", folder / "5", "--output_dir", tmp_path, "--predict_file", tmp_path / "texts.txt"]
    finished = call_script("task_distill.py", *flags)
    assert finished.returncode == 0, finished.stderr
    rows = [line.split("\t") for line in (tmp_path / "predictions.tsv").read_text().splitlines()]
    assert rows[0] == ["tokens", "labels", "lowest probability"] and rows[1][0] == "the good film ."
    assert [len(row[1].split(" ")) for row in rows[1:]] == [4, 1, 1]


@pytest.mark.slow
def test_a_run_killed_between_two_files_ends_with_the_same_bytes(folder):
    flags = ["--max_steps", 12, "--eval_step", 5]
    ends_the_same(lambda output: run(folder, *prediction(folder, output), *flags), folder, every=3)


@pytest.mark.slow
def test_two_processes_train_as_one(folder, tmp_path):
    flags = [*prediction(folder, tmp_path / "one"), "--max_steps", 9, "--eval_step", 4]
    run(folder, *flags)
    of_task = ["--task_name", "things", "--data_dir", folder / "things", "--teacher_model", folder / "teacher"]
    of_task += ["--train_batch_size", 13, "--learning_rate", 3e-3]
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*several, ROOT / "task_distill.py", *of_task, *flags, "--output_dir", tmp_path / "two"]
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    one, two = (torch.load(tmp_path / name / "pytorch_model.bin", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_exports_answer_as_the_student_does(folder, tmp_path):
    shutil.copytree(folder / "5", tmp_path / "5")
    run(folder, "--student_model", tmp_path / "5", "--do_export", "int8", "onnx")
    run(folder, "--student_model", tmp_path / "5", "--do_eval", "--overwrite_output")
    report = json.loads((tmp_path / "5" / "report.json").read_text())
    assert "onnx int8" in json.dumps(report) and "int8 model.pt" in json.dumps(report)
