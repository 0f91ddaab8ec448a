"""Answer spans: the kind's numbers, SQuAD's files, and a task of this kind through every step."""

import itertools
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import ends_the_same
from tiny import BAD, GOOD, NOUNS, ROOT, call_script, make_glove, make_teacher, make_tokenizer, names

from data_augmentation import augment_rows
from transformer.evaluation import Answers, losses_of_rows, resampled_results
from transformer.export import LogitsOf
from transformer.files import UserError
from transformer.flags import EVALUATION, INTERMEDIATE
from transformer.modeling import BertConfig, TinyBertForQuestionAnswering
from transformer.outputs import read_results
from transformer.own_tasks import as_trained, describe_task, find_task, stored_task
from transformer.processes import Processes
from transformer.settings import Lengths, settings_for
from transformer.task_run import TaskRun
from transformer.tasks.spans import GRADED, SPANS, best_threshold, find_answers, grade, pieces_of, stretches
from transformer.tasks.task import Row, Task, TaskFile, read_rows
from transformer.tasks.tokens import TOKENS
from transformer.tokenization import BertTokenizer

TASK = Task("t", SPANS.texts, "answers", (), SPANS.offered, kind=SPANS)
LONG = "The film is good. A very warm plot and a song, poor actors; the scene is not dull"


def row_of(question, context, *answers):
    """A row; the answers are (text, which of its occurrences)."""
    starts = [[found.start() for found in re.finditer(re.escape(text), context)][which] for text, which in answers]
    label = tuple((text, start) for (text, _), start in zip(answers, starts, strict=True))
    columns = {"id": "7", "question": question, "context": context}
    columns["answers"] = [{"text": text, "answer_start": start} for text, start in label]
    return Row(1, columns, (question, context), label, "7")


def encode(rows, lengths=(19, 4, 5)):
    return SPANS.encode(rows, make_tokenizer(), Lengths(*lengths), ())


# --- scores


def by_definition(prediction, gold):
    """(F1, exact match), written from the official scripts' description and not as the suite does."""

    def words_of(text):
        kept = "".join(each for each in text.lower() if each not in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~""")
        return [each for each in re.split(r"\s+", re.sub(r"(?<!\w)(?:an?|the)(?!\w)", " ", kept)) if each]

    best_f1 = best_exact = 0.0
    for answer in [each for each in gold if words_of(each)] or [""]:
        found, wanted = words_of(prediction), words_of(answer)
        best_exact = max(best_exact, float(found == wanted))
        left, common = list(wanted), 0
        for word in found:
            if word in left:
                left.remove(word)
                common += 1
        if not found or not wanted:
            best_f1 = max(best_f1, float(found == wanted))
        elif common:
            precision, recall = common / len(found), common / len(wanted)
            best_f1 = max(best_f1, 2 * precision * recall / (precision + recall))
    return best_f1, best_exact


def test_scores_are_those_of_the_official_definition():
    rng, seen = random.Random(3), set()
    words = [
        "the",
        "The",
        "a",
        "an",
        "ant",
        "U.S.",
        "co-op",
        "naïve",
        "Ärzte",
        "中国",
        "the-end",
        "«x»",
        "1,000",
        "!",
        " ",
    ]
    for _ in range(300):
        texts = [" ".join(rng.choices(words, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 4))]
        prediction, *gold = texts
        prediction = rng.choice([prediction, *gold])
        assert grade(prediction, gold) == pytest.approx(by_definition(prediction, gold)), (prediction, gold)
        seen.add(tuple(round(each, 1) for each in grade(prediction, gold)))
    assert len(seen) > 5


def test_known_cases_of_the_official_scripts():
    assert grade("The U.S.", ["us"]) == (1, 1) and grade("", []) == (1, 1) and grade("x", []) == (0, 0)
    assert grade("", ["x"]) == (0, 0) and grade("an ant", ["the ant"]) == (1, 1)
    assert grade("red big dog", ["dog", "big red dog"]) == (1, 0)
    assert grade("the", ["a"]) == (1, 1)  # nothing is left of either


def test_resampled_scores_are_means_of_the_rows():
    graded = np.array([("x", 0.5, 0.0, "who"), ("y", 1.0, 1.0, "is")], GRADED)
    gold = np.fromiter([("x z",), ("y",)], object)
    assert SPANS.score(TASK, graded, gold) == {"f1": 0.75, "exact": 0.5}
    found = resampled_results(TASK, [Answers("dev.json", graded, gold)])
    assert {*found["f1"]} <= {0.5, 0.75, 1.0} and len({*found["exact"]}) > 1
    assert SPANS.different(graded) == 2 == SPANS.different(gold)
    assert SPANS.same(graded, gold).tolist() == [False, True]
    assert SPANS.same(graded, graded[::-1]).tolist() == [False, False] and SPANS.same(graded, graded).all()
    assert SPANS.answer_text(TASK, gold[0]) == "x z" and SPANS.answer_text(TASK, graded[1]) == "y"
    assert SPANS.answer_text(TASK, ()) == "(no answer)" and SPANS.answer_text(TASK, ("a\nb", "c")) == "a b / c"


# --- where pieces stand

CASES = [
    ("Films: unfortunate, WARMTH!", ["Films", "s", "un", "fort", "unate", "WARMTH"]),
    ("the Ｆilm's\u00a0plots ﬁne", ["film"]),
    ("naïve café\u0301 \u0301x I\u0307 İ ẞ ŉ", []),
    ("a\x00b \x07 [MASK]film[SEP] [mask] ≮ \u1fef ;", []),
    ("中国人的电影 film。好！ 한국어 עברית ไทย 😀👍🏽", []),
    ("", []),
    (" \t\n\u2028\u3000", []),
]


def checked_pieces(text, tokenizer):
    pieces = pieces_of(text, tokenizer)
    assert pieces.ids == tokenizer.ids(text)
    assert len(pieces.ids) == len(pieces.starts) == len(pieces.ends)
    assert (pieces.starts < pieces.ends).all() and (np.diff(pieces.starts) >= 0).all()
    assert (np.diff(pieces.ends) >= 0).all() and all(end <= len(text) for end in pieces.ends)
    return pieces


def tokenizers():
    vocab = make_tokenizer().vocab
    characters = [mark + each for each in "abcdefgimnoprstuvwx中国电影好" for mark in ("", "##")]
    vocab |= {each: len(vocab) + number for number, each in enumerate(characters) if each not in vocab}
    vocab = {each: number for number, each in enumerate(vocab)}
    return BertTokenizer(vocab), BertTokenizer(vocab, do_lower_case=False), BertTokenizer(vocab, True, False, False)


TOKENIZERS = tokenizers()


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["uncased", "cased", "accents"])
def test_the_pieces_of_a_raw_text_are_the_tokenizer_s(tokenizer):
    for text, _ in CASES:
        checked_pieces(text, tokenizer)


def test_a_piece_has_its_own_characters():
    pieces = checked_pieces("Films: naïve caf\x00e!", TOKENIZERS[0])
    found = ["Films: naïve caf\x00e!"[start:end] for start, end in zip(pieces.starts, pieces.ends, strict=True)]
    assert found[:8] == ["Film", "s", ":", *"naïve"]
    assert found[8:] == ["caf\x00e"] * 4 + ["!"]  # four pieces of five characters


@settings(max_examples=40, deadline=None)
@given(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" a[MASK].ﬁÅ\u0301\u0323中")), max_size=40
    )
)
def test_the_pieces_of_any_text_are_the_tokenizer_s(text):
    for tokenizer in TOKENIZERS:
        checked_pieces(text, tokenizer)


def test_every_token_of_a_context_is_in_a_window_and_every_answer_at_its_place():
    tokenizer = TOKENIZERS[0]
    for length, stride, query in itertools.product((4, 9, 14, 19, 64), (1, 3, 50), (1, 4)):
        rows = [row_of("is the film good?", LONG, ("warm plot", 0)), row_of("who", "film"), row_of("", LONG)]
        found = SPANS.encode(rows, tokenizer, Lengths(length, stride, query), ())
        assert found.lengths.max() <= length and found.rows.tolist() == sorted(found.rows.tolist())
        for row, (question, context) in enumerate(each.texts for each in rows):
            seen = set()
            for number, window in enumerate(np.flatnonzero(found.rows == row)):
                ids = found.ids[found.offsets[window] : found.offsets[window + 1]].tolist()
                first = found.first_lengths[window]
                places = found.answered[found.answer_offsets[window] : found.answer_offsets[window + 1]]
                assert places.tolist() == [0, *range(first, len(ids) - 1)]
                asked = tokenizer.ids(question)[: min(query, (length - 3) // 2)]
                assert ids[:first] == [tokenizer.cls_token_id, *asked, tokenizer.sep_token_id]
                start = number * min(stride, length - 3 - len(asked))
                assert ids[first:-1] == tokenizer.ids(context)[start : start + len(ids) - 1 - first]
                seen |= {*range(start, start + len(ids) - 1 - first)}
                labels = found.labels[found.answer_offsets[window] : found.answer_offsets[window + 1]]
                assert (labels & 1).sum() == 1 == (labels >> 1).sum()
                begin, end = (labels & 1).argmax(), (labels >> 1).argmax()
                if row == 0 and begin:
                    assert tokenizer.ids("warm plot") == ids[first + begin - 1 : first + end]
            assert seen == {*range(len(tokenizer.ids(context)))}
        if length > 14:
            assert found.labels[found.rows[found.outputs_of(np.arange(len(found)))[0]] == 0].any()
    with pytest.raises(UserError, match="--max_seq_length 3: expected 4 or more"):
        encode(rows, (3, 4, 5))


def test_of_repeated_strings_the_answer_at_its_place_is_learned():
    context = "film film. film; film"
    for which in range(4):
        found = encode([row_of("film", context, ("film", which))])
        assert found.labels.nonzero()[0].tolist() == [1 + 2 * which - (which == 1) * 0 - (0 if which == 0 else 1)]


# --- losses


def test_losses_are_the_cross_entropies_of_start_and_end_over_the_window_s_outputs():
    torch.manual_seed(1)
    examples, targets = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 1, 2, 3, 3, 0], dtype=torch.int8)
    student, teacher = torch.randn(6, 2) * 5, torch.randn(6, 2) * 5
    bounds, gold, soft = [(0, 3), (3, 4), (4, 6)], [(1, 2), (0, 0), (0, 0)], []
    expected = []
    for (low, high), places in zip(bounds, gold, strict=True):
        logs = [student[low:high, side].log_softmax(0) for side in range(2)]
        expected.append(-(logs[0][places[0]] + logs[1][places[1]]) / 2)
        wanted = [(teacher[low:high, side] / 2).softmax(0) for side in range(2)]
        logs = [(student[low:high, side] / 2).log_softmax(0) for side in range(2)]
        soft.append(-sum((one * other).sum() for one, other in zip(wanted, logs, strict=True)) / 2)
    torch.testing.assert_close(SPANS.row_losses(student, targets, examples=examples), torch.stack(expected))
    torch.testing.assert_close(SPANS.gold_loss(student, targets, examples=examples), sum(expected) / 3)
    found = SPANS.prediction_loss(student, teacher, 2.0, examples=examples)
    torch.testing.assert_close(found, sum(soft) / 3)
    assert SPANS.prediction_loss(student, teacher, 2.0, examples=examples) > SPANS.prediction_loss(
        teacher, teacher, 2.0, examples=examples
    )


def test_losses_have_gradients_everywhere_and_bear_large_half_precision_logits():
    examples, targets = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([3, 0, 1, 0, 2], dtype=torch.int8)
    logits = (torch.arange(10.0).reshape(5, 2) * 6000).half().requires_grad_()
    loss = SPANS.gold_loss(logits, targets, examples=examples)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32 and logits.grad.isfinite().all()
    small = torch.randn(5, 2, dtype=torch.double, requires_grad=True)
    SPANS.prediction_loss(small, torch.randn(5, 2), 1.0, examples=examples).backward()
    sums = torch.zeros(2, 2, dtype=torch.double).index_add(0, examples, small.grad)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-7, rtol=0)  # as of every softmax


def test_a_row_s_loss_is_the_mean_of_its_windows():
    sequences = encode([row_of("who", LONG, ("warm", 0)), row_of("who", "film")])
    outputs = torch.randn(sequences.num_outputs, 2)
    examples = torch.from_numpy(sequences.outputs_of(np.arange(len(sequences)))[0])
    each = SPANS.row_losses(outputs, torch.from_numpy(sequences.labels), examples=examples)
    assert len(each) == len(sequences) > 3
    torch.testing.assert_close(losses_of_rows(SPANS, outputs, sequences), torch.stack([each[:-1].mean(), each[-1]]))


# --- answers


def test_the_best_span_of_all_windows_is_found_as_by_trying_all(monkeypatch):
    monkeypatch.setattr("transformer.tasks.spans.MOST_TOKENS", 4)
    rng = np.random.default_rng(5)
    rows = [row_of("is it", LONG), row_of("who", "film"), row_of("the song", LONG[20:]), row_of("x", "")]
    sequences, tokenizer = encode(rows), make_tokenizer()
    for _ in range(20):
        outputs = torch.from_numpy(rng.normal(size=(sequences.num_outputs, 2)).round(1)).float()
        found = find_answers(outputs, sequences)
        for row, each in enumerate(rows):
            pieces, best, null = pieces_of(each.texts[1], tokenizer), [], []
            for number, window in enumerate(np.flatnonzero(sequences.rows == row)):
                own = outputs[sequences.answer_offsets[window] : sequences.answer_offsets[window + 1]].double()
                sure = own.log_softmax(0).exp()
                null.append(own[0].sum().item())
                for start, end in itertools.product(range(1, len(own)), repeat=2):
                    if start <= end < start + 4:
                        places = number * 4 + start - 1, number * 4 + end - 1
                        text = each.texts[1][pieces.starts[places[0]] : pieces.ends[places[1]]]
                        best.append(
                            ((own[start, 0] + own[end, 1]).item(), text, (sure[start, 0] * sure[end, 1]).item())
                        )
            if not best:
                assert (found.texts[row], found.margins[row]) == ("", np.inf)
                continue
            top = max(score for score, *_ in best)
            assert (found.texts[row], pytest.approx(found.sure[row], rel=1e-4)) in [
                each[1:] for each in best if each[0] > top - 1e-6
            ]
            assert found.margins[row] == pytest.approx(min(null) - top)


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(6)
    for count in range(1, 40):
        margins = rng.normal(size=count).round(1)
        answered, unanswered = rng.random(count).round(2), (rng.random(count) < 0.4) * 1.0

        def total(threshold, margins=margins, scores=(answered, unanswered)):
            return np.where(margins > threshold, scores[1], scores[0]).sum()

        best = best_threshold(margins, answered, unanswered)
        assert total(best) == pytest.approx(max(map(total, [-99.0, *margins, 99.0])))
    assert best_threshold(np.array([np.inf]), np.ones(1), np.zeros(1)) == 0


def test_without_unanswerable_rows_no_threshold_is_chosen_and_every_row_answered():
    rows = [row_of("who", LONG, ("film", 0)), row_of("is", "dull song", ("song", 0))]
    sequences = encode(rows)
    outputs = torch.zeros(sequences.num_outputs, 2)
    outputs[sequences.answer_offsets[:-1]] = 50
    assert SPANS.tune(outputs, sequences) == {}
    found, gold = SPANS.answers(TASK, outputs, sequences, ())
    assert all(found["text"]) and gold.tolist() == [("film",), ("song",)]
    with_none = encode([*rows, row_of("x", "warm film")])
    gold = torch.from_numpy(with_none.labels)
    outputs = torch.stack([gold & 1, gold >> 1], dim=1) * 7.0
    tuned = Task(**TASK.__dict__ | SPANS.tune(outputs, with_none))
    found, gold = SPANS.answers(tuned, outputs, with_none, ())
    assert tuned.null_threshold is not None and [bool(text) for text in found["text"]] == [True, True, False]
    assert gold.tolist()[-1] == () and found["exact"][-1] == found["f1"][-1] == 1
    assert found["asked"].tolist() == ["who", "is", "x"]
    answers = Answers("dev.json", found, gold)
    assert SPANS.chance(tuned, answers) == "33.3% of the rows of dev.json have no answer."
    heading, [table] = SPANS.answer_tables(tuned, {"student": [answers]}, {})
    assert table[0] == ["questions of `dev.json`", "rows", "f1, student", "exact, student"]
    assert [line[:2] for line in table[1:]] == [["all", "3"], ["with an answer", "2"], ["without", "1"]]
    written = "".join(SPANS.prediction_file(found["text"].tolist(), with_none.source))
    assert json.loads(written) == {"7": ""}  # three rows of one id


# --- augmentation


class Proposer:
    """Proposes for every word of the tokenizer, of which some texts' are joined, words of other lengths."""

    def __init__(self, tokenizer, joined=()):
        self.tokenizer, self.joined = tokenizer, joined

    def words(self, text):
        return [word for word, _ in self.tokenizer.words_and_ids(text)]

    def candidates(self, texts):
        found = {}
        for text in texts:
            words, left = [], self.words(text)
            while left:
                count = next((len(each) for each in self.joined if tuple(left[: len(each)]) == each), 1)
                words.append("".join(left[:count]))
                left = left[count:]
            found[text] = words, {index: ["x", "longer word"] for index in range(len(words))}
        return found


def augmented(row, tokenizer=TOKENIZERS[0], joined=(), probability=0.5):
    file = SimpleNamespace(task=TASK, text_keys=SPANS.texts, table=SimpleNamespace(line=lambda columns: columns))
    return augment_rows(file, Proposer(tokenizer, joined), 30, probability, 1, [row], 0)


def test_augmentation_keeps_every_answer_whole_and_at_its_place():
    context = "The plot,  the Plot: naïve\tplot. Some [MASK] plots “café” 中国 电影!"
    row = row_of("Is the plot café?", context, ("plot", 1), ("the Plot: naïve", 0), ("“café”", 0))
    first, *variants = augmented(row, joined=[("电", "影")])
    assert first == row.columns and len(variants) > 30
    contexts = {each["context"] for each in variants} - {context}
    for each in variants:
        assert (each["question"] == row.texts[0]) != (each["context"] == context) and each["id"] == "7"
        for answer, old in zip(each["answers"], row.columns["answers"], strict=True):
            start = answer["answer_start"]
            assert answer["text"] == old["text"] == each["context"][start : start + len(old["text"])]
            before = len(re.findall(r"[^\w\s]", context[: old["answer_start"]]))  # the same place among repeated ones
            assert len(re.findall(r"[^\w\s]", each["context"][:start])) <= before
    assert len(contexts) > 10 and all("the Plot: naïve\tplot" in each and "“café”" in each for each in contexts)
    assert any("电影" not in each for each in contexts) and all("电" not in each or "电影" in each for each in contexts)


def test_a_repeated_answer_stays_the_occurrence_that_it_was():
    context = "good film, good film, good film"
    for which in range(3):
        for each in augmented(row_of("who", context, ("good", which)))[1:]:
            start = each["answers"][0]["answer_start"]
            assert each["context"][:start].count(",") == which or "longer" in each["context"] or "x" in each["context"]
            parts = [part.start() for part in re.finditer(r"good|longer word|x", each["context"])]
            assert start in parts and each["context"][start : start + 4] == "good"


def test_all_words_may_go_but_those_of_the_answer():
    [_, *variants] = augmented(row_of("film", "a film, a film", ("film", 1)), probability=1.0)
    found = {each["context"] for each in variants if each["question"] == "film"}
    assert found and all(
        re.fullmatch(r"(x|longer word) (x|longer word)(x|longer word) (x|longer word) film", each) for each in found
    )


def test_stretches_of_words_and_marks():
    tokenizer = TOKENIZERS[0]
    text = "Don't [SEP]stop,中国\u00a0now"
    found = [text[start:end] for start, end in stretches(text, tokenizer.basic_tokenizer.tokenize)]
    assert found == ["Don", "'", "t", "[SEP]", "stop", ",", "中", "国", "now"]


# --- files


def squad(*paragraphs, version="v2.0", indent=None):
    return json.dumps({"version": version, "data": [{"title": "x", "paragraphs": list(paragraphs)}]}, indent=indent)


def asked(key="1", question="who?", answers=(), **more):
    listed = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": key, "question": question, "answers": listed, **more}


def make_folder(folder, text, name="train.json"):
    (folder / "qa").mkdir(exist_ok=True)
    (folder / "qa" / name).write_text(text, encoding="utf-8")
    return find_task("qa", folder / "qa")


def rows_in(folder, name="train.json"):
    return list(TaskFile(folder / "qa" / name, find_task("qa", folder / "qa")))


PARAGRAPH = {"context": "Ärzte, good.", "qas": [asked("1", "who?", [("good", 7)], is_impossible=False), asked("2")]}


def test_the_official_layout_and_json_lines_are_read_alike(tmp_path):
    for indent in (None, 2):
        task = make_folder(tmp_path, squad(PARAGRAPH, indent=indent))
        assert task.kind is SPANS and task.metrics == ("f1", "exact") and task.max_seq_length == 384
        assert task.describe() == "text: `question`, `context`; label: `answers`; spans"
        assert task.augmented_file == "train_aug.jsonl" and task.submissions == ["predictions.json"]
        official = rows_in(tmp_path)
        assert [row.line for row in official] == ["1", "2"] and [row.label for row in official] == [(("good", 7),), ()]
    lines = [json.dumps(row.columns, ensure_ascii=False) for row in official]
    of_datasets = [
        json.dumps(
            {
                **row.columns,
                "answers": {"text": [text for text, _ in row.label], "answer_start": [7 for _ in row.label]},
            }
        )
        for row in official
    ]
    for text in ("\n".join(lines), "\n".join(of_datasets)):
        for name in ("train.jsonl", "train.json"):
            shutil.rmtree(tmp_path / "qa")
            assert make_folder(tmp_path, text, name).kind is SPANS
            assert [row[2:] for row in rows_in(tmp_path, name)] == [row[2:] for row in official]


@pytest.mark.parametrize("columns", [{"is_impossible": True}, {"answers": None}])
def test_a_question_without_an_answer_needs_no_list_of_them_even_as_the_first(tmp_path, columns):
    task = make_folder(tmp_path, squad({"context": "x", "qas": [{"id": "q7", "question": "y?", **columns}]}, PARAGRAPH))
    assert task.kind is SPANS and [row.label for row in rows_in(tmp_path)] == [(), (("good", 7),), ()]
    assert rows_in(tmp_path)[0].columns["answers"] == []  # which augmentation writes


@pytest.mark.parametrize(
    "text, message",
    [
        (squad({"context": "a good one", "qas": [asked("q7", answers=[("good", 3)])]}),
         r"train.json question q7: label .*, expected 'good' at character 3 of the context, where it has 'ood '$"),
        (squad({"context": "x", "qas": [asked("q7", answers=[("good", "2")])]}),
         r"question q7: label \[.*\], expected a list of \{\"text\": a text, \"answer_start\": its place .*number\}$"),
        (squad({"context": "x", "qas": [asked("q7", answers=[("", 0)])]}), "question q7: label .*, expected a list of"),
        (squad({"context": "x", "qas": [{**asked("q7"), "answers": "x"}]}), "question q7: label 'x', expected a list"),
        (squad({"context": "x", "qas": [{**asked("q7"), "answers": {"text": ["x"], "answer_start": []}}]}),
         "question q7: label .*, expected a list"),
        (squad(PARAGRAPH, {"context": "x", "qas": [{"id": "q7", "question": "x?", "is_impossible": False}]}),
         "question q7: label None, expected a list of"),
        (squad(PARAGRAPH, {"context": "x", "qas": [asked("2")]}), "question 2: its id occurs twice, expected it once$"),
        (squad({"context": "x", "qas": [asked("q7", question=5)]}), "question q7: question is 5, expected a text$"),
        (squad({"context": "x", "qas": [asked(5)]}), "question 5: id is 5, expected a text that is not empty$"),
        (squad({"context": "", "qas": [asked()]}), "data 1, a paragraph: context is '', expected a text that is not"),
        (squad({"context": "x"}), "data 1, a paragraph: 'qas' is missing, expected a list of objects$"),
        (squad("x"), "data 1: paragraphs is .*, expected a list of objects$"),
        (squad(), "train.json: the file is empty"),
        ('{"data": [3]}', "train.json: data is .*, expected a list of objects$"),
        ('{"version": "1.1", "data": [', "train.json, line 1: not valid JSON"),
        (squad({"context": "x \ud800", "qas": [asked("q7")]}), "question q7: has half of a surrogate pair"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_told_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        make_folder(tmp_path, text)
        rows_in(tmp_path)
    assert "\n" not in str(error.value)


def test_the_place_of_a_wrong_answer_in_json_lines_is_its_line(tmp_path):
    columns = {"id": "a", "question": "who?", "context": "x y", "answers": [{"text": "y", "answer_start": 2}]}
    wrong = {**columns, "answers": [{"text": "y", "answer_start": 0}]}
    with pytest.raises(UserError, match=r"train.jsonl line 2: label .*, expected 'y' at character 0 of the context"):
        make_folder(tmp_path, f"{json.dumps(columns)}\n{json.dumps(wrong)}\n", "train.jsonl")
        rows_in(tmp_path, "train.jsonl")


def test_of_a_long_wrong_answer_the_beginning_is_told(tmp_path):
    columns = {"id": "a", "question": "who?", "context": "x y", "answers": [{"text": "y" * 9999, "answer_start": 0}]}
    with pytest.raises(UserError, match=r"expected 'y{200}' at character 0 of the context, where it has 'x y'$"):
        make_folder(tmp_path, f"{json.dumps(columns)}\n", "train.jsonl")
        rows_in(tmp_path, "train.jsonl")


@pytest.mark.parametrize("name", ["qa", "squad2"])
def test_a_model_knows_its_windows_and_a_task_json_may_name_them(tmp_path, name):
    lengths = {"max_seq_length": 24, "doc_stride": 8, "max_query_length": 5}
    config = BertConfig(vocab_size=9, num_labels=2)
    config.task = replace(TASK, name=name).card(Lengths(**lengths))
    config.save_pretrained(tmp_path, SPANS.model.architecture)
    (tmp_path / "task.json").write_text(json.dumps(lengths))
    train = tmp_path / "train.jsonl"
    train.write_text('{"question": "who ?", "context": "a film", "answers": []}\n')
    described = describe_task(name, tmp_path, train)
    assert as_trained(described, tmp_path / "none") == described  # where there is no model, and so nothing to tell
    other = replace(described, max_seq_length=99, windows={"doc_stride": 9, "max_query_length": 5})
    del config.task["max_query_length"]
    (tmp_path / "model").mkdir()
    config.save_pretrained(tmp_path / "model", SPANS.model.architecture)
    for task in (stored_task(tmp_path), described, as_trained(other, tmp_path / "model")):
        assert lengths.items() <= {**settings_for(EVALUATION, {}, task=task.settings)}.items()
    assert TOKENS.lengths == ("max_seq_length",)  # whose windows no flag changes


def test_answers_are_the_label_beside_any_other_column(tmp_path):
    row = {"label": "x", "question": "who ?", "context": "a film", "answers": []}
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(row)}\n")
    for said in ({}, {"label": "answers"}):
        (tmp_path / "task.json").write_text(json.dumps(said))
        task = find_task("qa", tmp_path)
        assert task.kind is SPANS and task.label_column == "answers"


def test_questions_about_one_context_are_all_dev_rows_or_none(tmp_path):
    rows = [{"question": f"q{n} ?", "context": f"film {n % 9}", "answers": []} for n in range(90)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = find_task("qa", tmp_path, 0.4)
    train, dev = ({row.texts[1] for row in TaskFile(tmp_path / f"{name}.jsonl", task)} for name in ("train", "dev"))
    assert len(train) + len(dev) == len(train | dev) == 9 and train and dev


def test_squad_is_a_task_with_its_own_files(tmp_path):
    for name, version in (("squad", "v1.1"), ("SQuAD2", "v2.0")):
        task = find_task(name, tmp_path)
        assert (task.train_file, *task.dev_files) == (f"train-{version}.json", f"dev-{version}.json")
        assert task.kind is SPANS and task.max_seq_length == 384
        told = f"{task.name}/ by: python -m transformer.file_utils {task.name}$"
        with pytest.raises(UserError, match=f"train-{version}.json: no such file; fetched into {told}"):
            TaskFile(tmp_path / task.train_file, task)


# --- through the scripts


def paragraph_of(rng, key):
    """Of the nouns in a text, each question is about one: the word after its "is" answers it, if the noun is there."""
    nouns = rng.sample(NOUNS, 3)
    words = [rng.choice(GOOD + BAD) for _ in nouns]
    context = "  ".join(f"The {noun} is {word}." for noun, word in zip(nouns, words, strict=True))
    qas = []
    for number, noun in enumerate(rng.sample(NOUNS, 3)):
        start = context.index(f"{noun} is ") + len(noun) + 4 if noun in nouns else None
        found = [] if start is None else [(words[nouns.index(noun)], start)]
        qas.append(asked(f"{key}.{number}", f"{rng.choice(['Is', 'very'])} {noun}", found, is_impossible=not found))
    return {"context": context, "qas": qas}


def make_data(folder):
    rng = random.Random(5)
    folder.mkdir(parents=True)
    for name, count in (("train", 19), ("dev", 9), ("test", 4)):
        (folder / f"{name}.json").write_text(squad(*(paragraph_of(rng, f"{name}{each}") for each in range(count))))


def run(folder, *flags):
    sizes = "--max_seq_length 13 --doc_stride 5 --max_query_length 3 --train_batch_size 13 --learning_rate 3e-3"
    of_task = ["--task_name", "qa", "--data_dir", folder / "glue/qa", "--teacher_model", folder / "teacher"]
    finished = call_script("task_distill.py", *of_task, *sizes.split(), "--eval_step", 20, *flags)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of every step."""
    folder = tmp_path_factory.mktemp("spans")
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make_teacher(folder / "teacher", **none)
    make_teacher(folder / "3", hidden_size=12, num_hidden_layers=2, intermediate_size=20, **none)
    make_glove(folder / "glove.txt")
    make_data(folder / "glue/qa")
    places = ["--pretrained_bert_model", folder / "teacher", "--glove_embs", folder / "glove.txt"]
    finished = call_script(
        "data_augmentation.py", *places, "--glue_dir", folder / "glue", "--task_name", "qa", "--N", 2, "--M", 6
    )
    assert finished.returncode == 0, finished.stderr
    run(folder, "--do_finetune", "--num_train_epochs", 30)
    run(folder, "--aug_train", "--student_model", folder / "3", "--output_dir", folder / "4")
    run(folder, *prediction(folder, "5"), "--num_train_epochs", 6, "--baseline")
    return folder


def prediction(folder, output):
    return ["--aug_train", "--pred_distill", "--student_model", folder / "4", "--output_dir", folder / output]


def test_rows_without_labels_are_counted_apart_from_their_windows(tmp_path):
    context = " ".join(["the film is good ."] * 9)
    row = {"question": "who ?", "context": context, "answers": [{"text": "film", "answer_start": 4}]}
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n")
    (tmp_path / "more.txt").write_text(f"how ?\t{context}\nwhen ?\t{context}\n")
    given = {"data_dir": str(tmp_path), "max_seq_length": 24, "unlabelled": [str(tmp_path / "more.txt")]}
    run = TaskRun(find_task("qa", tmp_path), *settings_for(INTERMEDIATE, given).parts, Processes(torch.device("cpu")))
    data = run.read_data(make_tokenizer(), ())
    assert data.train.rows.tolist() == sorted(data.train.rows) and data.train.num_rows == 3
    assert data.plan.counts == {"rows": 3, "unlabelled": 2, "examples": len(data.train)} and len(data.train) > 6


@pytest.mark.slow
def test_every_augmented_row_has_its_answers(folder):
    task = find_task("qa", folder / "glue/qa")
    rows = list(TaskFile(folder / "glue/qa/train_aug.jsonl", task))
    assert len(rows) > 80 and sum(bool(row.label) for row in rows) > 30
    before = {row.columns["id"]: row for row in TaskFile(folder / "glue/qa/train.json", task)}
    assert all([each for each, _ in row.label] == [each for each, _ in before[row.columns["id"]].label] for row in rows)


@pytest.mark.slow
def test_models_learn_and_are_measured_with_their_thresholds(folder):
    results = {name: read_results(folder / name / "eval_results.txt") for name in ("teacher/qa", "5", "5/baseline")}
    for name, found in results.items():
        assert list(found)[:4] == ["global_step", "f1", "exact", "eval_loss"]
        config = json.loads((folder / name / "config.json").read_text())
        assert config["architectures"] == ["BertForQuestionAnswering"] and "null_threshold" in config["task"]
    assert results["teacher/qa"]["f1"] > 0.4
    run(folder, "--do_eval", "--student_model", folder / "5", "--output_dir", folder / "evaluated")
    assert read_results(folder / "evaluated" / "eval_results.txt") == results["5"]
    for report in ((folder / name / "report.md").read_text() for name in ("5", "evaluated")):
        assert "| questions of `dev.json` | rows | f1, teacher | exact, teacher |" in report
        assert "\n| with an answer | " in report and "\n| question | text | gold |" in report
        assert "of the rows of dev.json have no answer" in report
        assert "windows per second" in report and " ms a window (" in report
    rows = len((folder / "glue/qa/train_aug.jsonl").read_text().splitlines())
    assert f"teacher's logits of {rows} rows\n" in (folder / "5/log.txt").read_text()


@pytest.mark.slow
def test_predictions_are_in_the_official_layout_and_the_scores_are_theirs(folder, tmp_path):
    flags = ["--student_model", folder / "5", "--output_dir", tmp_path]
    run(folder, "--do_predict", *flags)
    test = json.loads((folder / "glue/qa/test.json").read_text())["data"][0]["paragraphs"]
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert list(found) == [each["id"] for paragraph in test for each in paragraph["qas"]]
    contexts = {each["id"]: paragraph["context"] for paragraph in test for each in paragraph["qas"]}
    assert all(text in contexts[key] for key, text in found.items())
    finished = call_script(
        "task_distill.py",
        *flags,
        "--predict_file",
        folder / "glue/qa/test.json",
        "--doc_stride",
        5,
        "--max_query_length",
        3,
    )
    assert finished.returncode == 0, finished.stderr
    header, *lines = [line.split("\t") for line in (tmp_path / "predictions.tsv").read_text().splitlines()]
    assert header == ["id", "question", "context", "answer", "probability"]
    assert {line[0]: line[3] for line in lines} == found and all(0 < float(line[4]) <= 1 for line in lines)
    (tmp_path / "texts.csv").write_text("context,question\nThe film is good.,film\n,film\n")
    finished = call_script("task_distill.py", *flags, "--predict_file", tmp_path / "texts.csv")
    assert finished.returncode == 0 and len((tmp_path / "predictions.tsv").read_text().splitlines()) == 3
    task = stored_task(folder / "5")
    assert task.kind is SPANS and task.text_columns == SPANS.texts and task.max_seq_length == 13
    assert next(read_rows(tmp_path / "texts.csv", task)).texts == ("film", "The film is good.")


@pytest.mark.slow
def test_hugging_face_reads_a_student_and_its_models_are_read_with_equal_logits(folder, tmp_path):
    from transformers import BertForQuestionAnswering

    ids = torch.tensor([[2, 7, 3, 8, 11, 3], [2, 9, 3, 12, 3, 0]])
    inputs = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2),
    }
    theirs = BertForQuestionAnswering.from_pretrained(folder / "5").eval()

    def compare(place):
        with torch.no_grad():
            expected = theirs(**inputs)
            found = LogitsOf(TinyBertForQuestionAnswering.from_pretrained(place).eval())(**inputs)
        for one, other in zip(found, (expected.start_logits, expected.end_logits), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    compare(folder / "5")
    torch.nn.init.normal_(theirs.qa_outputs.weight)
    theirs.save_pretrained(tmp_path)
    compare(tmp_path)
    shutil.copy(folder / "5/vocab.txt", tmp_path)
    assert stored_task(tmp_path).text_columns == SPANS.texts and stored_task(tmp_path).kind is SPANS


@pytest.mark.slow
def test_exports_have_optimum_s_outputs_and_answer_alike(folder, tmp_path):
    shutil.copytree(folder / "5", tmp_path / "5")
    run(
        folder,
        "--do_export",
        "int8",
        "onnx",
        "--do_eval",
        "--student_model",
        tmp_path / "5",
        "--output_dir",
        tmp_path / "5",
    )
    report = (tmp_path / "5/report.md").read_text()
    agreed = [line for line in report.splitlines() if line.startswith("| same answer as the student |")]
    assert "| int8 model.pt | onnx | onnx int8 |" in report and agreed[0].split("|")[6].strip() == "1.0000"
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "5/onnx/model.onnx"))
    assert [each.name for each in session.get_outputs()] == ["start_logits", "end_logits"]
    assert [each.shape for each in session.get_outputs()] == [["batch", "length"]] * 2
    script = torch.jit.load(tmp_path / "5/int8/model.pt")
    ids = torch.tensor([[2, 7, 3, 8, 3]])
    start, end = script(ids, torch.ones_like(ids), torch.zeros_like(ids))
    assert start.shape == end.shape == (1, 5)


@pytest.mark.slow
def test_a_student_with_fewer_word_pieces_learns_from_a_teacher_that_reads_them(folder):
    mid = ["--student_model", folder / "3", "--output_dir", folder / "few4", "--student_vocab", "task"]
    run(folder, "--aug_train", "--max_steps", 5, *mid)
    with mock.patch.object(TaskRun, "teacher_outputs", autospec=True, side_effect=TaskRun.teacher_outputs) as asked_for:
        run(folder, "--pred_distill", "--student_model", folder / "few4", "--output_dir", folder / "few5")
    [(_, teacher, data, _)] = [call.args for call in asked_for.call_args_list]
    count = len((folder / "few5/vocab.txt").read_text().split("\n")) - 1
    assert len(teacher.bert.embeddings.word_embeddings.weight) == count < len(make_tokenizer())
    assert data.taught.ids.tolist() == data.train.ids.tolist() and data.taught.ids.max() < count
    reports = [json.loads((folder / name / "report.json").read_text())["table"] for name in ("5", "few5")]
    assert reports[0][0]["teacher"] == reports[1][0]["teacher"]  # parameters


@pytest.mark.slow
def test_a_run_killed_between_two_files_ends_with_the_same_bytes(folder):
    flags = ["--max_steps", 9, "--eval_step", 4]
    expected = ends_the_same(lambda output: run(folder, *prediction(folder, output), *flags), folder, every=3)
    assert "null_threshold" in json.loads(expected["config.json"])["task"]


@pytest.mark.slow
def test_two_processes_train_as_one(folder):
    flags = [*prediction(folder, "one"), "--max_steps", 9, "--eval_step", 4]
    run(folder, *flags)
    sizes = "--max_seq_length 13 --doc_stride 5 --max_query_length 3 --train_batch_size 13 --learning_rate 3e-3"
    of_task = ["--task_name", "qa", "--data_dir", folder / "glue/qa", "--teacher_model", folder / "teacher"]
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*several, ROOT / "task_distill.py", *of_task, *sizes.split(), *flags, "--output_dir", folder / "two"]
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert names(folder / "one") == names(folder / "two")
    one, two = (torch.load(folder / name / "pytorch_model.bin", weights_only=True) for name in ("one", "two"))
    del one["qa_outputs.bias"]  # to which every loss is blind: its gradient is rounding
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)
