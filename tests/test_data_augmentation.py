"""Units of stage 1: variants, candidates, windows, word vectors, and an output that depends on the seed alone."""

import argparse

import numpy as np
import pytest
import torch
from tiny import GOOD, call_script, make_glove, make_sst2, make_teacher, make_tokenizer

import data_augmentation
from data_augmentation import (
    STOP_WORDS,
    CandidateProposer,
    WordVectors,
    augment_rows,
    is_special,
    load_masked_lm,
    make_variants,
)
from transformer.file_utils import UserError
from transformer.glue import TaskFile, find_task
from transformer.training import Launch

CPU = Launch(torch.device("cpu"), 0, 1, torch.float32)


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
    assert candidates == {1: proposer.vectors.neighbours("films", 6)}


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
    process = call_script("data_augmentation.py", "--pretrained_bert_model", folder / "teacher", "--glove_embs",
                          folder / "glove.txt", "--glue_dir", folder / "glue", "--N", 4, "--M", 6,
                          "--overwrite_output", *flags)  # fmt: skip
    assert process.returncode == 0, process.stderr
    return (folder / "glue" / "SST-2" / "train_aug.tsv").read_bytes()


def test_the_output_does_not_depend_on_chunk_or_batch_size(folder, monkeypatch):
    expected = run(folder)
    for rows, tokens in ((1, 4096), (7, 31), (128, 100)):
        monkeypatch.setattr(data_augmentation, "CHUNK_ROWS", rows)
        monkeypatch.setattr(data_augmentation, "BATCH_TOKENS", tokens)
        assert run(folder) == expected, (rows, tokens)


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


def test_neighbours_are_the_nearest_by_cosine_without_the_word(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 2 0\nnorth 0 1\nalmost 5 1\nwest -1 0\nfar 100 90\n")
    assert WordVectors(path).neighbours("east", 3) == ["almost", "far", "north"]
    assert WordVectors(path).neighbours("east", 99) == ["almost", "far", "north", "west"]
    assert WordVectors(path).neighbours("unknown", 3) == []


def test_special_tokens_are_no_neighbours(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 2 0\n[UNK] 2 0\nalmost 5 1\nwest -1 0\n")
    assert WordVectors(path).neighbours("east", 2) == ["almost"]


def test_of_a_word_that_comes_twice_the_first_vector_counts(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 1 0\nnorth 0 1\neast 0 1\nnear 1 0.1\n")
    assert WordVectors(path).neighbours("near", 1) == ["east"]
    assert "east" not in WordVectors(path).neighbours("east", 5)


def test_a_zero_vector_is_near_to_nothing(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 1 0\nzero 0 0\nnear 1 0.1\n")
    assert WordVectors(path).neighbours("east", 1) == ["near"]


def test_a_line_of_numbers_only_where_a_block_of_lines_ends_is_named_rightly(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"w{index} 1 2\n" for index in range(10_003)) + "bad 1 x\n")
    with pytest.raises(UserError, match="line 10004: expected a word and 2 numbers"):
        WordVectors(path)


def test_good_words_are_replaced_by_the_whole_script(folder):
    lines = run(folder, "--p", "1").decode().splitlines()
    rows = (folder / "glue" / "SST-2" / "train.tsv").read_text().splitlines()
    assert [line for line in lines if line in rows] == rows  # every row is there, in its order
    added = [line for line in lines if line not in rows]
    assert added and all(len(line.split("\t")) == 2 for line in added)
    assert any(not any(word in line.split() for word in GOOD) for line in added if line.endswith("\t1"))
