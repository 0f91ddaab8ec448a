"""A student with fewer word pieces than its teacher: which stay, and that both models read the same."""

import copy as copying
from unittest import mock

import numpy as np
import pytest
import torch
from pipeline import Killed, call
from test_distillation import make_batch, make_mask, make_pair
from test_resume import Replacements
from test_task_run import task_run
from tiny import PIECES, SPECIAL, VOCABULARY, make_sst2, make_tokenizer, tree

from transformer.checkpoint import load_state_dict
from transformer.files import UserError, write_json
from transformer.json_file import read_json
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.outputs import read_results
from transformer.report import reported
from transformer.settings import INTERMEDIATE, settings_for
from transformer.tokenization import BertTokenizer
from transformer.vocabulary import keep_pieces, reduce, student_tokenizer

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
WORDS = ["[unused0]", "[UNK]", "the", "film", "plot", "##er", "warm", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]


def tokenizer_of(pieces, **casing):
    return BertTokenizer({piece: index for index, piece in enumerate(pieces)}, **casing)


TEACHERS = tokenizer_of([*WORDS, *LETTERS])
TEXT = "the films the plots the film warm"


def make_student(tokenizer=TEACHERS):
    torch.manual_seed(4)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 5}
    pad = {"pad_token_id": tokenizer.pad_token_id}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=37, **pad, **sizes)
    return TinyBertForSequenceClassification(config).eval()


def cut(asked, text=TEXT, tokenizer=TEACHERS):
    """(the student, its tokenizer) cut to the pieces of a text."""
    student = make_student(tokenizer)
    return student, reduce(student, tokenizer, tokenizer, np.array(tokenizer.ids(text)), asked)


@pytest.mark.parametrize(
    "asked, words",
    [
        ("task", "the film plot warm"),
        ("900", "the film plot warm"),
        ("61", "the film plot warm"),
        ("59", "the film"),  # of the two others, once each, neither
        ("58", "the"),
        ("57", ""),
        ("60", "the film plot"),  # of equally frequent pieces the teacher's first
    ],
)
def test_the_pieces_of_the_text_stay_the_most_frequent_first_in_the_teachers_order(asked, words):
    _, smaller = cut(asked)
    longer = [piece for piece in smaller.ids_to_tokens if piece not in [*LETTERS, *SPECIAL]]
    assert longer == words.split()
    assert [*SPECIAL, *LETTERS] == [piece for piece in [*SPECIAL, *LETTERS] if piece in smaller.vocab]
    assert smaller.ids_to_tokens == [piece for piece in TEACHERS.ids_to_tokens if piece in smaller.vocab]


def test_a_number_below_that_of_the_pieces_that_stay_is_refused_with_it():
    with pytest.raises(UserError, match="--student_vocab 56: the 57 special tokens and .*; expected 57 or more$"):
        cut("56")


@pytest.mark.parametrize("given", ["few", "-3", "5.5", ""])
def test_what_is_neither_task_nor_a_number_is_refused(given):
    with pytest.raises(UserError, match=f"--student_vocab {given}: expected task, or the number of word pieces"):
        settings_for(INTERMEDIATE, {"student_vocab": given})


def test_a_word_without_a_piece_of_its_own_falls_apart_into_shorter_ones():
    _, smaller = cut("58")
    assert smaller.tokenize("the plot thaws") == ["the", "p", "##l", "##o", "##t", "t", "##h", "##a", "##w", "##s"]
    assert smaller.tokenize("thé ж") == ["the", "[UNK]"]  # a letter that the teacher does not know either


def test_a_chinese_character_stays_as_a_word_only():
    pieces = [*SPECIAL, "电", "##电", "影", "##影", "か", "##か", "##", "#"]
    _, smaller = cut("task", "影", tokenizer_of(pieces))
    assert smaller.ids_to_tokens == [*SPECIAL, "电", "影", "か", "##か", "#"]
    together = tokenizer_of(pieces, tokenize_chinese_chars=False)  # to this one they are letters
    _, smaller = cut("task", "影", together)
    assert smaller.ids_to_tokens == [piece for piece in pieces if piece != "##"]


def test_text_of_kept_pieces_reads_and_answers_as_before():
    whole = make_student()
    student, smaller = cut("task")
    outputs = []
    for model, tokenizer in ((whole, TEACHERS), (student, smaller)):
        assert tokenizer.tokenize(TEXT) == TEACHERS.tokenize(TEXT)
        ids, pad = tokenizer.encode_pair(tokenizer.ids(TEXT))[0], [tokenizer.pad_token_id] * 3
        mask = torch.tensor([[1] * len(ids) + [0] * 3])
        outputs.append(model(torch.tensor([ids + pad]), None, mask)[0])
        assert model.bert.embeddings.word_embeddings.padding_idx == model.config.pad_token_id == pad[0]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert student.config.vocab_size == len(smaller) == len(student.bert.embeddings.word_embeddings.weight)
    assert student.num_parameters("bert.embeddings") == whole.num_parameters("bert.embeddings") - 2 * 12


@pytest.mark.parametrize("training", [False, True])
def test_every_loss_and_gradient_is_as_with_the_whole_vocabulary(training):
    learner, teacher = make_pair()
    kept = [piece for piece in VOCABULARY if piece not in PIECES]
    tokenizer, smaller = make_tokenizer(), tokenizer_of(kept)
    small = copying.deepcopy(learner)
    keep_pieces(small.student, tokenizer, smaller)
    keep_pieces(small.teacher, tokenizer, smaller)
    assert len(teacher.bert.embeddings.word_embeddings.weight) == len(VOCABULARY)
    batch = make_batch(make_mask())
    batch["input_ids"].clamp_(max=VOCABULARY.index(PIECES[0]) - 1)
    found = []
    for each, reader in ((learner, tokenizer), (small, smaller)):
        ids = [
            reader.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(row)) for row in batch["input_ids"].tolist()
        ]
        torch.manual_seed(6)  # the same dropout
        losses = each.train(training)({**batch, "input_ids": torch.tensor(ids)})
        sum(losses.values()).backward()
        rows = each.student.bert.embeddings.word_embeddings.weight.grad
        found.append({**losses, "gradient": rows[reader.convert_tokens_to_ids(kept)]})
    assert len(found[0]) == 6 and found[0]["gradient"].abs().max() > 0.01
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


# --- the student's folder


def test_a_student_reads_its_own_pieces_if_they_are_its_teachers_in_order(tmp_path):
    assert student_tokenizer(tmp_path, TEACHERS) is TEACHERS  # without a vocabulary it takes the teacher's
    TEACHERS.save_pretrained(tmp_path)
    assert student_tokenizer(tmp_path, TEACHERS) is TEACHERS
    _, smaller = cut("task")
    smaller.save_pretrained(tmp_path)
    assert student_tokenizer(tmp_path, TEACHERS).ids_to_tokens == smaller.ids_to_tokens


@pytest.mark.parametrize(
    "pieces", [[*WORDS[:-2], *WORDS[:-3:-1], *LETTERS], [*WORDS, "cold"], [*SPECIAL, *LETTERS]], ids=str
)
def test_a_student_of_other_pieces_or_another_order_is_refused(tmp_path, pieces):
    tokenizer_of(pieces).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="vocab.txt: differs from the teacher's vocabulary; expected the same pieces"):
        student_tokenizer(tmp_path, TEACHERS)


@pytest.mark.parametrize("casing", [{"do_lower_case": False}, {"strip_accents": False}])
def test_a_student_of_fewer_pieces_that_reads_capitals_or_accents_otherwise_is_refused(tmp_path, casing):
    tokenizer_of(WORDS, **casing).save_pretrained(tmp_path)
    [(name, value)] = casing.items()
    with pytest.raises(UserError, match=f"reads text with .*{name} {value}.*; expected .*{name} True"):
        student_tokenizer(tmp_path, TEACHERS)


def test_a_smaller_vocabulary_in_hugging_faces_newer_file_is_found(tmp_path):
    _, smaller = cut("task")
    write_json(tmp_path / "tokenizer.json", {"model": {"vocab": smaller.vocab}})
    assert student_tokenizer(tmp_path, TEACHERS).ids_to_tokens == smaller.ids_to_tokens


# --- in task distillation


def test_in_the_prediction_step_the_teacher_reads_its_own_pieces_of_the_rows_that_are_trained_on(tmp_path):
    make_sst2(tmp_path / "SST-2")
    flags = ["--pred_distill", "--data_dir", tmp_path / "SST-2", "--max_steps", 2, "--train_batch_size", 5]
    run, tokenizer = task_run(*flags, "--max_seq_length", 31), make_tokenizer()
    smaller = tokenizer_of([piece for piece in VOCABULARY if piece not in ("film", "##s")])
    whole, data = (run.read_data(each, run.task.labels) for each in (tokenizer, smaller))
    rows = np.unique(np.concatenate(data.plan.batches(0)[1][:2]))
    assert len(rows) == 10 and not np.array_equal(whole.train.lengths, data.train.lengths)
    teacher = make_student(tokenizer)
    outputs = run.teacher_outputs(teacher, data._replace(taught=whole.train), tmp_path)
    assert np.flatnonzero(outputs.abs().sum(dim=1)).tolist() == rows.tolist()
    torch.testing.assert_close(outputs[rows], run.evaluator.outputs(teacher, whole.train, rows))


def distil(folder, *flags):
    """The intermediate step with --student_vocab into `mid`, the prediction step from there into `out`."""
    found = []
    for name, student, output in (("intermediate", "3", "mid"), ("prediction", "mid", "out")):
        given = ["--student_model", folder / student, "--output_dir", folder / output]
        found.append(call(folder, name, *given, *(flags if name == "intermediate" else ())))
        assert found[-1].returncode == 0, found[-1].stderr
    return found


@pytest.mark.slow
def test_a_student_of_its_tasks_pieces_learns_as_one_of_all_and_hugging_face_reads_it(copy):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    distil(copy, "--student_vocab", "task")
    pieces = (copy / "out" / "vocab.txt").read_text().splitlines()
    assert set(SPECIAL) < set(pieces) < set(VOCABULARY) and pieces == [each for each in VOCABULARY if each in pieces]
    assert (copy / "mid" / "vocab.txt").read_bytes() == (copy / "out" / "vocab.txt").read_bytes()
    for ours, usual in (("mid", "4"), ("out", "5")):
        assert read_json(copy / ours / "config.json")["vocab_size"] == len(pieces)
        assert len(load_state_dict(copy / ours)["bert.embeddings.word_embeddings.weight"]) == len(pieces)
        results, expected = (read_results(copy / folder / "eval_results.txt") for folder in (ours, usual))
        assert results == pytest.approx(expected, rel=1e-4)
    teachers = [
        line for line in (copy / "out" / "report.md").read_text().splitlines() if line.startswith("| dev acc |")
    ]
    usual = [line for line in (copy / "5" / "report.md").read_text().splitlines() if line.startswith("| dev acc |")]
    assert teachers == usual

    texts = ["The film is GOOD and cold .", "very dull , not fine"]
    theirs = AutoTokenizer.from_pretrained(copy / "out")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(copy / "out").eval()(**theirs).logits
        model = TinyBertForSequenceClassification.from_pretrained(copy / "out").eval()
        logits, _ = model(theirs["input_ids"], theirs["token_type_ids"], theirs["attention_mask"])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    tokenizer = BertTokenizer.from_pretrained(copy / "out")
    for row, mask, text in zip(theirs["input_ids"].tolist(), theirs["attention_mask"], texts, strict=True):
        assert row[: mask.sum()] == tokenizer.encode_pair(tokenizer.ids(text))[0]


@pytest.mark.slow
def test_a_student_of_few_pieces_is_evaluated_and_compared_with_its_baselines(copy):
    [process, _] = distil(copy, "--student_vocab", 12)
    assert f"student's vocabulary: 12 of {len(VOCABULARY)} pieces, among them 2 of the " in process.stdout
    student = ["--student_model", copy / "out", "--output_dir", copy / "out"]
    found = call(copy, "evaluate", *student, "--baseline")
    assert found.returncode == 0, found.stderr
    assert reported(copy / "out")[:4] == ["teacher", "student", "baseline", "general baseline"]
    teacher = call(copy, "evaluate", "--output_dir", copy / "usual").stdout
    for line in ("dev acc ", "parameters ", "of which embeddings "):
        [was], [now] = ([row for row in each.splitlines() if row.startswith(line)] for each in (teacher, found.stdout))
        assert was.split(line)[1].split()[0] == now.split(line)[1].split()[0]  # the teacher reads with its own
    sizes = [len((copy / "out" / name / "vocab.txt").read_text().splitlines()) for name in ("baseline", ".")]
    assert sizes == [12, 12]
    assert len((copy / "out" / "baseline_general" / "vocab.txt").read_text().splitlines()) == len(VOCABULARY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["intermediate", "prediction"])
def test_a_killed_run_with_fewer_pieces_goes_on_to_the_same_bytes(copy, name):
    pieces = ["--student_vocab", 17] if name == "intermediate" else []
    if name == "prediction":
        assert call(copy, "intermediate", "--output_dir", copy / "mid", "--student_vocab", 17).returncode == 0
        pieces = ["--student_model", copy / "mid"]

    def run(folder):
        return call(copy, name, *pieces, "--output_dir", copy / folder)

    with mock.patch("os.replace", Replacements()) as counted:
        assert run("whole").returncode == 0
    with mock.patch("os.replace", Replacements(counted.calls // 2)), pytest.raises(Killed):
        run("killed")
    process = run("killed")
    assert process.returncode == 0, process.stderr
    assert tree(copy / "killed") == tree(copy / "whole")
    if name == "intermediate":
        again = call(copy, name, "--output_dir", copy / "whole", "--student_vocab", 18)
        assert "made with other inputs or flags: student_vocab was 17, is now 18; " in again.stderr
