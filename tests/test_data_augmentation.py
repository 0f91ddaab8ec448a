"""Units of stage 1: variants, candidates, windows, word vectors, and an output that depends on the seed alone."""

import argparse
import copy
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import GOOD, ROOT, SPECIAL, VOCABULARY, call_script, make_glove, make_sst2, make_teacher, make_tokenizer

import data_augmentation
from data_augmentation import (
    STOP_WORDS,
    CandidateProposer,
    augment_rows,
    batches,
    distinct_tokens,
    join_words,
    load_masked_lm,
    make_variants,
    prepare,
    rounds,
)
from transformer.file_utils import UserError
from transformer.glue import TaskFile
from transformer.modeling import BertConfig, BertForMaskedLM
from transformer.own_tasks import find_task
from transformer.stages import OutputRecord
from transformer.tokenization import BertTokenizer
from transformer.training import Launch
from transformer.vectors import WordVectors, is_special

CPU = Launch(torch.device("cpu"), 0, 1, torch.float32)
WORDS = [word for word in VOCABULARY[5:18] if word not in STOP_WORDS]  # of one piece each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augmentation")
    make_teacher(folder / "teacher")
    make_glove(folder / "glove.txt")
    make_sst2(folder / "glue" / "SST-2")
    return folder


@pytest.fixture(scope="module")
def proposer(folder):
    return CandidateProposer(*load_masked_lm(folder / "teacher", CPU), WordVectors(folder / "glove.txt"), 6, CPU)


class NoProposer:
    """Stands in for the models: every word may become "new" or "other"."""

    def candidates(self, texts):
        return {text: (text.split(), {index: ["new", "other"] for index in range(len(text.split()))}) for text in texts}


def variants(text, candidates, tries=50, probability=0.5, seed=1):
    return make_variants(text, text.split(), candidates, tries, probability, np.random.default_rng(seed))


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
    assert make_variants("Films.", words, {0: ["film"]}, 20, 0.5, rng) == []


def test_each_candidate_is_drawn_about_equally_often():
    rng = np.random.default_rng(0)
    drawn = [make_variants("a", ["a"], {0: ["x", "y", "z"]}, 1, 1.0, rng)[0] for _ in range(900)]
    assert all(240 < drawn.count(word) < 360 for word in "xyz")


def read_task(tmp_path, name, *lines):
    (tmp_path / "train.tsv").write_text("".join(f"{line}\n" for line in lines))
    return TaskFile(tmp_path / "train.tsv", find_task(name))


def test_each_row_is_followed_by_its_variants_with_its_label(tmp_path):
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", "a b\t1", "c d\t0")
    lines = augment_rows(list(task_file), 0, task_file, NoProposer(), argparse.Namespace(seed=1, N=9, p=0.5))
    first, second = lines.index("a b\t1"), lines.index("c d\t0")
    assert first == 0 < second - 1
    assert {line[-1] for line in lines[:second]} == {"1"} and {line[-1] for line in lines[second:]} == {"0"}


def test_a_row_s_variants_depend_on_its_own_number_only(tmp_path):
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", "a b c d\t1", "a b c d\t1", "e f g h\t0")
    rows, args = list(task_file), argparse.Namespace(seed=1, N=9, p=0.5)
    together = augment_rows(rows, 0, task_file, NoProposer(), args)
    apart = [
        line for number, row in enumerate(rows) for line in augment_rows([row], number, task_file, NoProposer(), args)
    ]
    assert together == apart
    second = together.index("a b c d\t1", 1)
    assert together[:second] != together[second : 2 * second]  # equal sentences do not get equal variants


def test_candidates_are_words_of_the_vocabulary_other_than_the_word(proposer):
    words, candidates = proposer.candidates({"the film is good ."})["the film is good ."]
    assert set(candidates) == {1, 3}  # "the" and "is" are stop words, "." is no word
    vocabulary = set(make_tokenizer().vocab)
    for index, proposed in candidates.items():
        assert 0 < len(proposed) <= 6
        assert set(proposed) <= vocabulary and words[index] not in proposed
        assert not any(token.startswith("##") or is_special(token) for token in proposed)


def test_a_word_of_several_pieces_gets_its_glove_neighbours(proposer):
    _, candidates = proposer.candidates({"the films"})["the films"]
    assert candidates == {1: proposer.vectors.neighbours(["films"], 6)["films"]}


def test_stop_words_stay_in_any_case_of_letters(proposer):
    text = "the and not very is a"
    assert proposer.candidates({text})[text][1].keys() <= set()
    assert {"the", "and", "not", "very", "is", "a"} <= STOP_WORDS


def test_the_masked_pair_is_the_sentence_masked_and_as_it_was(proposer):
    tokenizer = proposer.tokenizer
    pieces = tokenizer.ids("good film is warm")
    ids, first_length, mask = proposer._masked_pair(pieces, 1)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "good", "[MASK]", "is", "warm", "[SEP]", "good", "film", "is", "warm", "[SEP]"]
    assert (first_length, mask) == (6, 2)


@pytest.mark.parametrize("position", [0, 3, 8, 9, 24, 40, 41, 49])
def test_a_sentence_over_the_maximum_is_windowed_around_the_mask(proposer, position):
    pieces = [5 + index % 13 for index in range(50)]
    pieces[position] = 20
    ids, first_length, mask = proposer._masked_pair(pieces, position)
    assert len(ids) <= proposer.max_length == 37
    assert ids[mask] == proposer.tokenizer.mask_token_id and ids.count(proposer.tokenizer.mask_token_id) == 1
    assert ids[first_length + mask - 1] == 20  # the word itself, in the unmasked half
    assert first_length == 2 + (proposer.max_length - 3) // 2  # the window is as long as it can be


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
    monkeypatch.setattr(data_augmentation, "REPORT_SECONDS", 0)
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


def test_upper_case_sentences_are_widened_as_the_model_reads_them(proposer):
    words, candidates = proposer.candidates({"The FILM is Good"})["The FILM is Good"]
    assert words == ["the", "film", "is", "good"] and set(candidates) == {1, 3}


def test_good_words_are_replaced_by_the_whole_script(folder):
    lines = run(folder, "--p", "1").decode().splitlines()
    rows = (folder / "glue" / "SST-2" / "train.tsv").read_text().splitlines()
    assert [line for line in lines if line in rows] == rows  # every row is there, in its order
    added = [line for line in lines if line not in rows]
    assert added and all(len(line.split("\t")) == 2 for line in added)
    assert any(not any(word in line.split() for word in GOOD) for line in added if line.endswith("\t1"))


# --- the ranking


def make_proposer(model, count=6, batch_size=32):
    """A proposer with the tiny tokenizer and no vectors."""

    class NoVectors:
        chinese_words = frozenset()

        def neighbours(self, words, count, device):
            return {word: [] for word in words}

    return CandidateProposer(model.eval(), make_tokenizer(), NoVectors(), count, CPU, batch_size)


def make_model(vocab_size=None, **values):
    torch.manual_seed(5)
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 37,
        "initializer_range": 0.3,
    }
    return BertForMaskedLM(BertConfig(vocab_size=vocab_size or len(VOCABULARY), **{**sizes, **values})).eval()


def random_texts(count):
    rng = random.Random(4)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_states_at_one_position_are_those_of_the_whole_computation(layers, padded):
    bert = make_model(num_hidden_layers=layers).double().bert
    with torch.no_grad():
        for name, bias in bert.named_parameters():
            if name.endswith("bias"):
                bias.normal_()
    ids, types = torch.randint(5, 9, (13, 7)), (torch.arange(7) > 3).long().repeat(13, 1)
    positions = torch.arange(13) % 7
    mask = (torch.arange(7) <= positions[:, None].clamp(min=3)).long() if padded else None
    distinct = distinct_tokens(ids, types)
    assert len(distinct[0]) <= 7 * 4  # of 91
    with torch.inference_mode():
        whole = bert(ids, types, mask).hidden_states[-1][torch.arange(13), positions]
        for given in (distinct, None):
            torch.testing.assert_close(bert.states_at(positions, ids, types, mask, given), whole, rtol=0, atol=1e-12)


def test_distinct_tokens_are_the_first_ones_at_their_position():
    ids, types = torch.tensor([[1, 2, 3], [1, 3, 3], [2, 2, 3]]), torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 1]])
    places, copies = distinct_tokens(ids, types)
    assert sorted(places.tolist()) == [0, 1, 2, 4, 5, 6]
    assert torch.equal(ids.flatten()[places][copies], ids) and torch.equal(types.flatten()[places][copies], types)
    assert torch.equal(places[copies] % 3, torch.arange(3).repeat(3, 1))


def exact_ranking(model, proposer, text):
    """Each mask's best ids, one sequence at a time in float64 over all positions, ties by the lower id."""
    model = copy.deepcopy(model).double()
    words = proposer.split(text)
    pieces = [piece for _, ids in words for piece in ids]
    for position in range(len(pieces)):
        ids, first_length, mask = proposer._masked_pair(pieces, position)
        types = [int(place >= first_length) for place in range(len(ids))]
        with torch.inference_mode():
            scores = model(torch.tensor([ids]), torch.tensor([types]))[0, mask].round(decimals=9)
        yield scores.sort(descending=True, stable=True).indices[: proposer.num_candidates].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_ranking_is_that_of_float64_in_any_batch(batch_size):
    model = make_model()
    with torch.no_grad():  # words that float32 cannot tell apart, and one that nothing can
        embeddings = model.bert.embeddings.word_embeddings.weight
        embeddings[8:14] = embeddings[7] + torch.randn(6, 24) * 3e-7
        embeddings[15] = embeddings[6]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    proposer, texts = make_proposer(model, 12, batch_size), random_texts(13)
    found = proposer._propose({text: proposer.split(text) for text in texts})
    for text in texts:
        assert found[text][:, 1:].tolist() == list(exact_ranking(model, proposer, text))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_sequences_with_near_scores_are_computed_again(monkeypatch):
    model, rows = make_model(), {torch.float32: 0, torch.float64: 0}
    with torch.no_grad():  # two words that are often, not always, among the first
        model.bert.embeddings.word_embeddings.weight[8] = model.bert.embeddings.word_embeddings.weight[7] + 1e-7
    hidden = CandidateProposer._hidden

    def counted(self, sequences, masks, batch):
        rows[next(model.parameters()).dtype] += len(batch)
        return hidden(self, sequences, masks, batch)

    monkeypatch.setattr(CandidateProposer, "_hidden", counted)
    proposer = make_proposer(model, 15)
    proposer.candidates(random_texts(60))
    assert 0 < rows[torch.float64] < 0.8 * rows[torch.float32]
    again, proposer.place = rows[torch.float64], Launch(CPU.device, 0, 1, torch.bfloat16)
    proposer.candidates(random_texts(60))
    assert rows[torch.float64] == again  # there is nothing exact in bf16


def test_equal_scores_are_found_in_a_small_vocabulary_too():
    """Where few scores tell the deviation, two of them equal, all masks are ranked as in float64."""
    model = make_model()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[16] = model.bert.embeddings.word_embeddings.weight[0]
    proposer, texts = make_proposer(model, 12), random_texts(40)
    found = proposer._propose({text: proposer.split(text) for text in texts})
    for text in texts:
        assert found[text][:, 1:].tolist() == list(exact_ranking(model, proposer, text))


def test_scores_come_in_groups_of_many_batches(monkeypatch):
    monkeypatch.setattr(data_augmentation, "HEAD_ROWS", 7)
    model, sizes = make_model(), []
    model.cls.predictions.register_forward_hook(lambda module, args, scores: sizes.append(len(scores)))
    texts = random_texts(13)
    found = make_proposer(model, 5, 1).candidates(texts)
    assert sum(sizes) > 40 and len(sizes) < sum(sizes) / 6 and max(sizes) < 7 + 9
    monkeypatch.undo()
    assert found == make_proposer(model, 5).candidates(texts)


def test_ids_beyond_the_vocabulary_are_never_proposed():
    model = make_model(vocab_size=len(VOCABULARY) + 9)
    with torch.no_grad():
        model.cls.predictions.bias[len(VOCABULARY) :] = 99
    proposed = make_proposer(model, 99).candidates(["good film"])["good film"][1]
    assert set(proposed) == {0, 1} and len(proposed[0]) == len(VOCABULARY) - len(SPECIAL) - 1 - 4  # half words


def test_batches_hold_every_row_once_and_no_more_tokens_than_asked_for():
    lengths = np.random.default_rng(1).integers(3, 60, 230)
    found = list(batches(np.arange(3, 230), lengths, 400))
    assert sorted(np.concatenate(found).tolist()) == list(range(3, 230))
    assert all(len(rows) * lengths[rows].max() <= 400 for rows in found)
    assert all(lengths[rows].min() == lengths[rows].max() or len(rows) * lengths[rows].max() <= 100 for rows in found)
    assert [len(rows) for rows in batches(np.arange(4), lengths, 1)] == [1] * 4


def test_a_text_that_comes_again_in_another_chunk_is_computed_once(tmp_path, monkeypatch):
    texts = random_texts(10)
    order = [*texts, texts[3], *texts[:4], *texts, "good plot"]
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", *(f"{text}\t1" for text in order))
    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 4)
    proposer, computed = make_proposer(make_model()), []
    propose = proposer._propose
    monkeypatch.setattr(proposer, "_propose", lambda texts: computed.extend(texts) or propose(texts))
    expected = make_proposer(make_model()).candidates(order)
    assert prepare(proposer, task_file, 3, None, CPU) == len(order)
    for _, first, rows in rounds(task_file, 3, None, CPU):
        texts = [row.texts[0] for row in rows]
        assert texts == order[first : first + len(rows)]
        assert proposer.candidates(texts) == {text: expected[text] for text in texts}
    assert sorted(computed) == sorted(set(order[3:]))
    assert not proposer.kept and not any(proposer.to_come.values())


# --- Chinese


CHARACTERS = list("电影好看真的我不喜欢这部音乐，。")
CHINESE_WORDS = {"电影": (1, 0), "音乐": (0.9, 0.1), "影片": (1, 0.1), "喜欢": (0, 1), "看": (0.1, 1), "film": (0.8, 0)}


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chinese")
    tokenizer = BertTokenizer({token: index for index, token in enumerate([*SPECIAL, *CHARACTERS, "##s", "film"])})
    lines = [f"{word} {east} {north}" for word, (east, north) in CHINESE_WORDS.items()]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = make_model(vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder / "teacher")
    model.save_pretrained(folder / "teacher")
    return CandidateProposer(model, tokenizer, WordVectors(folder / "vectors.txt"), 4, CPU), folder


def test_chinese_characters_are_joined_to_the_longest_words_of_the_vectors(chinese):
    proposer, _ = chinese
    words = [word for word, _ in proposer.split("我不喜欢这部电影 film，音乐 电影")]
    assert words == ["我", "不", "喜欢", "这", "部", "电影", "film", "，", "音乐", "电影"]
    without = make_proposer(make_model())
    assert [word for word, _ in without.split("喜欢电影")] == ["喜", "欢", "电", "影"]


def test_a_chinese_word_gets_neighbours_and_a_single_character_what_the_model_proposes(chinese):
    proposer, _ = chinese
    words, candidates = proposer.candidates(["我喜欢好电影。"])["我喜欢好电影。"]
    assert words == ["我", "喜欢", "好", "电影", "。"]
    assert set(candidates) == {1, 2, 3}  # neither the stop word nor the full stop
    assert candidates[3] == ["film", "影片", "音乐", "看"] and candidates[1][0] == "看"
    assert "好" not in candidates[2] and set(candidates[2]) <= {*CHARACTERS, "film"}


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
    assert join_words(words) == text


def test_chinese_rows_are_widened_by_the_whole_script(chinese):
    _, folder = chinese
    (folder / "SST-2").mkdir()
    (folder / "SST-2" / "train.tsv").write_text("sentence\tlabel\n我喜欢这部电影。\t1\n", encoding="utf-8")
    process = call_script(
        "data_augmentation.py",
        "--pretrained_bert_model",
        folder / "teacher",
        "--glove_embs",
        folder / "vectors.txt",
        "--glue_dir",
        folder,
        "--N",
        20,
        "--M",
        3,
    )
    assert process.returncode == 0, process.stderr
    lines = (folder / "SST-2" / "train_aug.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "我喜欢这部电影。\t1" and len(lines) > 5
    assert all(line.startswith("我") and line.endswith("。\t1") for line in lines[1:])
    assert any("影片" in line for line in lines) and not any("影 片" in line for line in lines)


# --- processes, stops, flags


def test_the_processes_share_out_the_rows_of_every_round(tmp_path, monkeypatch):
    task_file = read_task(tmp_path, "SST-2", "sentence\tlabel", *(f"{row}\t1" for row in range(23)))
    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 3)
    places = [Launch(CPU.device, rank, 3, torch.float32) for rank in range(3)]
    shares = [list(rounds(task_file, 2, 22, place)) for place in places]
    assert [[rows for rows, _, _ in share] for share in shares] == [[9, 9, 2]] * 3
    found = [(first, row.texts[0]) for parts in zip(*shares, strict=True) for _, first, rows in parts for row in rows]
    assert [text for _, text in found] == [str(row) for row in range(2, 22)]
    assert all(first <= int(text) < first + 3 for first, text in found)


# Runs the script in small chunks; with a number in place of "-" it is killed when it has saved so often.
STOPPABLE = """
import os, signal, sys
sys.path.insert(0, {root!r})
import data_augmentation
from transformer import stages
data_augmentation.CHUNK_ROWS = 3
stop, save = sys.argv.pop(1), stages.OutputRecord.save_progress
def save_and_die(self, *given):
    global stop
    save(self, *given)
    stop = stop if stop == "-" else int(stop) - 1
    if stop == 0:
        os.kill(os.getpid(), signal.SIGKILL)
stages.OutputRecord.save_progress = save_and_die
stages.run(data_augmentation.main)
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
    expected, save, path = run(folder), OutputRecord.save_progress, folder / "glue" / "SST-2" / "train_aug.run.json"

    class Killed(BaseException):
        pass

    def save_and_die(*given):
        save(*given)
        raise Killed

    monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", 8)
    monkeypatch.setattr(OutputRecord, "save_progress", save_and_die)
    with pytest.raises(Killed):
        run(folder)
    monkeypatch.setattr(OutputRecord, "save_progress", save)
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
        data_augmentation.parse_args(["--batch_size", "0"])
