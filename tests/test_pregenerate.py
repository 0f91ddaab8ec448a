"""Units of stage 2: what a training sequence consists of, masking, and an output that depends on the seed alone."""

import gzip
import json
import multiprocessing
import os
import pickle
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
from tiny import call_script, make_corpus, make_tokenizer, names, run_script, tree

import pregenerate_training_data
from transformer.corpus import Corpus, CorpusWriter, read_blocks, tokenize_block
from transformer.epochs import pregenerated_epochs, read_epoch
from transformer.file_utils import UserError, read_json
from transformer.instances import InstanceMaker, InstanceSettings, truncate_pair
from transformer.tokenization import BertTokenizer

TOKENIZER = make_tokenizer()


def settings(**values):
    defaults = {
        "one_seq": False,
        "max_seq_len": 17,
        "short_seq_prob": 0.2,
        "seed": 3,
        "masked_lm_prob": 0.0,
        "max_predictions_per_seq": 20,
        "do_whole_word_mask": False,
        "packed": False,
    }
    return InstanceSettings(**{**defaults, **values})


def numbered_corpus(tmp_path):
    """Documents whose words are all different, so that each token tells where it comes from: (path, sizes)."""
    sizes = [[3, 4, 5], [7], [2, 2, 2, 2], [6, 30, 1], [1]]  # words of each sentence of each document
    words = iter(range(1000))
    text = "\n\n".join("\n".join(" ".join(f"w{next(words)}" for _ in range(size)) for size in doc) for doc in sizes)
    (tmp_path / "corpus.txt").write_text(text + "\n")
    return tmp_path / "corpus.txt", sizes


class NumberTokenizer:
    """Reads "w17" as id 17 + 5; ids 0..4 are the special tokens."""

    pad_token_id, unk_token_id, cls_token_id, sep_token_id, mask_token_id = range(5)
    ids_to_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(1000))]
    vocab = {token: index for index, token in enumerate(ids_to_tokens)}
    encode_pair = TOKENIZER.encode_pair

    def ids(self, text):
        return [int(word[1:]) + 5 for word in text.split()]


def read_corpus(path, tokenizer, limit=None):
    """The corpus of a file, its ids beside that file."""
    writer = CorpusWriter(path.parent, "H", {"limit": limit})
    for block in read_blocks([path]):
        writer.add(*tokenize_block(tokenizer, "H", block), block.next, limit)
    writer.finish()
    return Corpus(path.parent, "H")


def sentences(corpus, index):
    ids, bounds = corpus.document(index)
    return [ids[start:stop].tolist() for start, stop in zip(bounds, bounds[1:], strict=False)]


@pytest.fixture
def corpus(tmp_path):
    path, sizes = numbered_corpus(tmp_path)
    return read_corpus(path, NumberTokenizer()), sizes


def instances(corpus, epochs=60, **values):
    maker = InstanceMaker(corpus, NumberTokenizer(), settings(**values))
    for epoch in range(epochs):
        for index in range(len(corpus)):
            for a, b, is_random in maker.instances(index, random.Random(f"{epoch} {index}")):
                yield index, a, b, is_random


def document_of(corpus, ids):
    found = {index for index in range(len(corpus)) for sentence in sentences(corpus, index) if set(ids) & set(sentence)}
    assert len(found) == 1
    return found.pop()


def test_an_empty_line_ends_a_document(corpus):
    corpus, sizes = corpus
    assert [[len(sentence) for sentence in sentences(corpus, index)] for index in range(len(corpus))] == sizes
    assert (corpus.num_sentences, len(corpus.ids)) == (12, 65)


def test_empty_lines_in_a_row_and_at_the_ends_make_no_documents(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n \n\nw1 w2\n\n\t\n\nw3\nw4\n\n\n")
    corpus = read_corpus(path, NumberTokenizer())
    assert [sentences(corpus, index) for index in range(len(corpus))] == [[[6, 7]], [[8], [9]]]


def test_a_and_b_are_a_run_of_consecutive_words_each(corpus):
    corpus, _ = corpus
    for _, a, b, _ in instances(corpus):
        assert a and b
        assert a == list(range(a[0], a[0] + len(a))) and b == list(range(b[0], b[0] + len(b)))


def test_b_follows_a_in_its_document_or_comes_from_another_one(corpus):
    corpus, _ = corpus
    seen = Counter()
    for index, a, b, is_random in instances(corpus):
        assert document_of(corpus, a) == index
        assert (document_of(corpus, b) == index) is not is_random
        if not is_random:
            assert b[0] > a[-1]
        seen[is_random] += 1
    assert seen[True] > 50 and seen[False] > 50


def test_a_pair_fits_the_maximum_length(corpus):
    corpus, _ = corpus
    lengths = [len(a) + len(b) for _, a, b, _ in instances(corpus)]
    assert max(lengths) == 14 and min(lengths) >= 2


def test_half_of_the_pairs_that_could_continue_do(corpus):
    corpus, _ = corpus
    # Documents of several sentences only: a single sentence has nothing that follows.
    flags = [is_random for index, _, _, is_random in instances(corpus, 400, short_seq_prob=0) if index == 2]
    assert 0.4 < sum(flags) / len(flags) < 0.65


def test_every_sentence_of_a_document_is_used_in_each_epoch(tmp_path):
    path, _ = numbered_corpus(tmp_path)
    corpus = read_corpus(path, NumberTokenizer())
    maker = InstanceMaker(corpus, NumberTokenizer(), settings(max_seq_len=99))
    for epoch in range(20):
        for index in range(len(corpus)):
            used = set()
            for a, b, is_random in maker.instances(index, random.Random(f"{epoch} {index}")):
                used |= set(a) | (set() if is_random else set(b))
            assert used == {token for sentence in sentences(corpus, index) for token in sentence}


def test_random_documents_are_drawn_in_proportion_to_their_sentences(corpus):
    corpus, sizes = corpus
    rng = random.Random(1)
    drawn = Counter(corpus.other_document(0, rng) for _ in range(9000))
    assert drawn[0] == 0
    for index in range(1, 5):
        assert drawn[index] / 9000 == pytest.approx(len(sizes[index]) / 9, abs=0.03)


def test_another_document_is_never_the_document_itself(corpus):
    corpus, _ = corpus
    rng = random.Random(2)
    for index in range(len(corpus)):
        drawn = {corpus.other_document(index, rng) for _ in range(300)}
        assert drawn == set(range(5)) - {index}


def test_one_seq_gives_two_segments_of_consecutive_text(corpus):
    corpus, _ = corpus
    lone = 0
    for index, a, b, is_random in instances(corpus, one_seq=True):
        assert is_random is False and len(a) + len(b) <= 14
        assert document_of(corpus, a) == index and a == list(range(a[0], a[0] + len(a)))
        if b == [1]:  # for want of a next sentence; "." in a vocabulary that has it
            lone += 1
        else:
            assert b == list(range(b[0], b[0] + len(b))) and document_of(corpus, b) == index and b[0] > a[-1]
    assert lone > 50


def test_the_target_length_is_drawn_once_for_a_document(corpus):
    corpus, _ = corpus

    class Draws(random.Random):
        count = 0

        def randint(self, first, last):
            self.count += (first, last) == (2, 14)
            return super().randint(first, last)

    maker, pairs = InstanceMaker(corpus, NumberTokenizer(), settings(short_seq_prob=1)), []
    for seed in range(40):
        rng = Draws(seed)
        pairs.append(len(list(maker.instances(2, rng))))
        assert rng.count == 1
    assert len({*pairs}) > 1


def test_truncation_cuts_the_longer_segment_at_either_end():
    rng = random.Random(1)
    starts = set()
    for _ in range(50):
        a, b = truncate_pair(list(range(20)), list(range(100, 104)), 10, rng)
        assert len(a) + len(b) == 10 and len(b) == 4
        assert a == list(range(a[0], a[0] + 6)) and b == [100, 101, 102, 103]
        starts.add(a[0])
    assert len(starts) > 5


def test_truncation_leaves_a_pair_that_fits():
    assert truncate_pair([1, 2], [3], 3, random.Random(1)) == ([1, 2], [3])


def line_of(maker, a, b, seed=0):
    ids, _ = TOKENIZER.encode_pair(a, b)
    return json.loads(maker.json_lines([(ids, len(a) + 2, True, *maker.mask(ids, random.Random(seed)))]))


def tiny_maker(**values):
    return InstanceMaker([], TOKENIZER, settings(**values))


def test_a_sequence_has_its_special_tokens_and_segments():
    a, b = TOKENIZER.ids("the film is good"), TOKENIZER.ids('a dull "')
    assert line_of(tiny_maker(), a, b) == {
        "tokens": ["[CLS]", "the", "film", "is", "good", "[SEP]", "a", "dull", '"', "[SEP]"],
        "segment_ids": [0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
        "is_random_next": True,
        "masked_lm_positions": [],
        "masked_lm_labels": [],
    }


@pytest.mark.parametrize("whole_words", [False, True])
def test_masked_labels_restore_the_text(whole_words):
    maker = tiny_maker(masked_lm_prob=0.4, do_whole_word_mask=whole_words)
    a, b = TOKENIZER.ids("the films is unfortunate"), TOKENIZER.ids("a dull warmly plots")
    plain = line_of(tiny_maker(), a, b)["tokens"]
    for seed in range(50):
        line = line_of(maker, a, b, seed)
        positions = line["masked_lm_positions"]
        assert positions == sorted(set(positions)) and positions
        assert len(positions) <= round(0.4 * len(plain))
        restored = list(line["tokens"])
        for position, label in zip(positions, line["masked_lm_labels"], strict=True):
            restored[position] = label
        assert restored == plain
        assert all(plain[position] not in ("[CLS]", "[SEP]") for position in positions)


def test_whole_words_are_masked_together():
    maker = tiny_maker(masked_lm_prob=0.5, do_whole_word_mask=True)
    ids = TOKENIZER.ids("the films unfortunate plots warmly")
    pieces = ["[CLS]", *TOKENIZER.convert_ids_to_tokens(ids)]
    words = {0: [0]}
    for position, piece in enumerate(pieces):
        words[position] = words[position - 1] if piece.startswith("##") else []
        words[position].append(position)
    split = 0
    for seed in range(60):
        positions = set(line_of(maker, ids, None, seed)["masked_lm_positions"])
        for position in positions:
            assert set(words[position]) <= positions
        split += any(len(words[position]) > 1 for position in positions)
    assert split > 20


def test_without_whole_words_pieces_are_masked_alone():
    maker = tiny_maker(masked_lm_prob=0.1)
    ids = TOKENIZER.ids("unfortunate unfortunate")
    alone = {tuple(line_of(maker, ids, None, seed)["masked_lm_positions"]) for seed in range(40)}
    assert {(1,), (2,), (3,)} <= alone


def test_no_more_than_the_maximum_is_masked():
    maker = tiny_maker(masked_lm_prob=0.9, max_predictions_per_seq=3)
    ids = TOKENIZER.ids("the film is good and the plot is dull")
    assert {len(line_of(maker, ids, None, seed)["masked_lm_positions"]) for seed in range(20)} == {3}


def test_masks_are_eight_in_ten_and_random_words_one_in_ten():
    maker = tiny_maker(masked_lm_prob=1.0, max_predictions_per_seq=99)
    ids, counts = [7] * 50, Counter()
    for seed in range(100):
        counts.update(line_of(maker, ids, None, seed)["tokens"][1:-1])
    word = TOKENIZER.ids_to_tokens[7]
    assert counts["[MASK]"] / 5000 == pytest.approx(0.8, abs=0.03)
    assert counts[word] / 5000 == pytest.approx(0.1, abs=0.02)
    assert not {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} & set(counts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pregenerate")
    make_tokenizer().save_pretrained(folder / "model")
    make_corpus(folder / "corpus.txt", documents=23)
    return folder


def run(folder, output, *flags):
    process = call_script(
        "pregenerate_training_data.py",
        "--train_corpus",
        folder / "corpus.txt",
        "--bert_model",
        folder / "model",
        "--output_dir",
        output,
        "--max_seq_len",
        19,
        "--epochs_to_generate",
        2,
        "--masked_lm_prob",
        0.2,
        *flags,
    )
    assert process.returncode == 0, process.stderr
    return {name: data for name, data in tree(output).items() if name != "run.json"}


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    return run(folder, tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_output_does_not_depend_on_the_number_of_workers(folder, expected, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pregenerate_training_data, "CHUNK_SENTENCES", 20)
    monkeypatch.setattr("transformer.corpus.BLOCK_BYTES", 400)
    assert run(folder, tmp_path, "--num_workers", workers) == expected


def test_what_workers_are_given_can_be_sent_to_a_process_of_its_own(folder, tmp_path):
    corpus = read_corpus(folder / "corpus.txt", TOKENIZER)
    maker = InstanceMaker(corpus, TOKENIZER, settings())
    sent = pickle.loads(pickle.dumps(maker.make_chunk))  # as where processes are not forked: macOS, Windows
    assert sent((0, 2, 5)) == maker.make_chunk((0, 2, 5))


def test_a_worker_that_dies_while_tokenizing_costs_nothing_that_was_saved(folder, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("transformer.corpus.BLOCK_BYTES", 400)
    monkeypatch.setattr(pregenerate_training_data, "SAVE_SECONDS", 0)
    real = pregenerate_training_data.tokenize_block

    def tokenize_block(tokenizer, typecode, block):
        if multiprocessing.parent_process() is not None and block.line > 40:
            time.sleep(0.3)  # what came before is saved by then
            os.kill(os.getpid(), signal.SIGKILL)
        return real(tokenizer, typecode, block)

    monkeypatch.setattr(pregenerate_training_data, "tokenize_block", tokenize_block)
    with pytest.raises(AssertionError, match="error: a worker process died"):
        run(folder, tmp_path, "--num_workers", 2)
    assert read_json(tmp_path / "corpus.part")["position"][1] > 0
    assert run(folder, tmp_path) == expected


def test_a_worker_that_dies_is_told_and_the_same_command_goes_on(folder, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(pregenerate_training_data, "CHUNK_SENTENCES", 20)
    real = InstanceMaker.instances

    def instances(self, index, rng):
        if multiprocessing.parent_process() is not None and index > 4:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        return real(self, index, rng)

    monkeypatch.setattr(InstanceMaker, "instances", instances)
    with pytest.raises(AssertionError, match="error: a worker process died .* fewer --num_workers may help"):
        run(folder, tmp_path, "--num_workers", 2)
    assert run(folder, tmp_path, "--num_workers", 1) == expected


def test_workers_end_without_a_word(folder, tmp_path):
    process = run_script(
        "pregenerate_training_data.py",
        "--train_corpus",
        folder / "corpus.txt",
        "--bert_model",
        folder / "model",
        "--output_dir",
        tmp_path,
        "--num_workers",
        3,
    )
    assert process.stderr == ""


def test_reduce_memory_gives_the_same_bytes_and_leaves_no_file(folder, expected, tmp_path):
    assert run(folder, tmp_path, "--reduce_memory") == expected
    assert names(tmp_path) == {*expected, "run.json"}


@pytest.mark.parametrize("flags", [[], ["--one_seq"], ["--masked_lm_prob", 0]])
def test_packed_epochs_hold_what_the_json_holds(folder, tmp_path, flags):
    run(folder, tmp_path / "json", *flags)
    left = run(folder, tmp_path / "packed", "--packed", "--num_workers", 2, *flags)
    ends = ["_ids.npy", "_metrics.json", "_sequences.npy", *([] if "--masked_lm_prob" in flags else ["_masked.npy"])]
    assert set(left) == {f"epoch_{epoch}{end}" for epoch in range(2) for end in ends}
    (path, metrics), _ = pregenerated_epochs(tmp_path / "packed")
    packed = read_epoch(path, metrics, TOKENIZER, 19)
    lines = list(map(json.loads, (tmp_path / "json" / "epoch_0.json").read_text().splitlines()))
    assert len(packed) == metrics["num_training_examples"] == len(lines)
    rows = np.load(tmp_path / "packed" / "epoch_0_sequences.npy")
    masked = None if "--masked_lm_prob" in flags else np.load(tmp_path / "packed" / "epoch_0_masked.npy").tolist()
    for index, line in enumerate(lines):
        batch = packed.batch(np.array([index]))
        assert TOKENIZER.convert_ids_to_tokens(batch["input_ids"][0].tolist()) == line["tokens"]
        assert batch["token_type_ids"][0].tolist() == line["segment_ids"]
        assert rows["is_random_next"][index] == line["is_random_next"]
        if masked is not None:
            mine, masked = masked[: rows["num_masked"][index]], masked[rows["num_masked"][index] :]
            assert [position for position, _ in mine] == line["masked_lm_positions"]
            assert TOKENIZER.convert_ids_to_tokens([token for _, token in mine]) == line["masked_lm_labels"]
    assert not masked


def test_a_packed_batch_is_the_batch_of_the_json(folder, tmp_path):
    batches = []
    for flags in ([], ["--packed"]):
        run(folder, tmp_path / str(len(flags)), *flags)
        path, metrics = pregenerated_epochs(tmp_path / str(len(flags)))[1]
        batches.append(read_epoch(path, metrics, TOKENIZER, 21, pad=True).batch(np.arange(13)))
    assert batches[0].keys() == batches[1].keys()
    for name, values in batches[0].items():
        assert values.equal(batches[1][name]), name


def test_a_packed_epoch_of_another_vocabulary_or_torn_is_refused(folder, tmp_path):
    run(folder, tmp_path, "--packed")
    path, metrics = pregenerated_epochs(tmp_path)[0]
    other = BertTokenizer({**TOKENIZER.vocab, "new": len(TOKENIZER.vocab)})
    with pytest.raises(UserError, match="packed with another vocabulary"):
        read_epoch(path, metrics, other, 19)
    with pytest.raises(UserError, match="19 tokens, --max_seq_length is 18"):
        read_epoch(path, metrics, TOKENIZER, 18)
    assert len(read_epoch(path, metrics, TOKENIZER, 19, limit=3)) == 3
    whole = path.read_bytes()
    for data in (whole[:-7], whole[:-2], b"", b"text", whole[:-2] + b"\xff\xff"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not valid packed sequences"):
            read_epoch(path, metrics, TOKENIZER, 19)


def test_the_corpus_may_be_several_files_of_each_kind(folder, expected, tmp_path):
    corpus = (folder / "corpus.txt").read_text().split("\n\n")
    (tmp_path / "corpus" / "more").mkdir(parents=True)
    (tmp_path / "corpus" / "a.txt").write_text("\n\n".join(corpus[:5]))
    (tmp_path / "corpus" / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(corpus[5:11]).encode()))
    (tmp_path / "corpus" / "more" / "c.txt").write_text("\n\n".join(corpus[11:]))
    files = [tmp_path / "corpus" / "a.txt", tmp_path / "corpus" / "b.txt.gz", tmp_path / "corpus" / "more" / "c.txt"]
    for number, given in enumerate([[tmp_path / "corpus"], files]):
        assert run(folder, tmp_path / str(number), "--train_corpus", *given) == expected


def test_the_epochs_differ_and_the_seed_changes_them(folder, expected, tmp_path):
    assert expected["epoch_0.json"] != expected["epoch_1.json"]
    assert run(folder, tmp_path, "--seed", 5)["epoch_0.json"] != expected["epoch_0.json"]


def test_the_metrics_tell_how_many_lines_an_epoch_has(expected):
    for epoch in range(2):
        metrics = json.loads(expected[f"epoch_{epoch}_metrics.json"])
        lines = expected[f"epoch_{epoch}.json"].decode().splitlines()
        assert metrics == {"num_training_examples": len(lines), "max_seq_len": 19}
        lengths = [len(json.loads(line)["tokens"]) for line in lines]
        assert max(lengths) <= 19 and all(len(json.loads(line)["segment_ids"]) <= 19 for line in lines)


def test_one_seq_writes_two_segments(folder, tmp_path):
    lines = run(folder, tmp_path, "--one_seq")["epoch_0.json"].decode().splitlines()
    for instance in map(json.loads, lines):
        assert set(instance["segment_ids"]) == {0, 1} and instance["tokens"].count("[SEP]") == 2
        assert instance["is_random_next"] is False
        assert not instance["is_random_next"]


def test_a_limit_reads_the_first_documents_only(folder, tmp_path):
    first = tmp_path / "first.txt"
    first.write_text("\n\n".join((folder / "corpus.txt").read_text().split("\n\n")[:3]))
    limited = run(folder, tmp_path / "limited", "--limit", 3)
    assert limited == run(folder, tmp_path / "first", "--train_corpus", first) != run(folder, tmp_path / "whole")


def test_a_sentence_longer_than_the_maximum_is_cut(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(f"w{index}" for index in range(90)) + "\n\nw900 w901\n")
    corpus = read_corpus(path, NumberTokenizer())
    for _, a, b, _ in instances(corpus, 20):
        assert len(a) + len(b) <= 14
