"""Flat arrays of token sequences, the batches made from them, and the readers that fill them."""

import json

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, make_sst2, make_tokenizer

from transformer.data import BUCKET_BATCHES, SequencesBuilder, epoch_batches, sorted_batches, token_batches
from transformer.epochs import pregenerated_epochs, read_epoch
from transformer.file_utils import UserError
from transformer.glue import TaskFile
from transformer.own_tasks import find_task
from transformer.settings import Lengths

# Ids and length of the first segment; labels are 7, 8, 9.
THREE = [([11, 12, 13, 14, 15], 3), ([21], 1), ([31, 32, 33], 2)]


def make_sequences(rows=THREE, labels=(7, 8, 9), folder=None, vocab_size=99, **padding):
    builder = SequencesBuilder(vocab_size, folder, **padding)
    for (ids, first_length), label in zip(rows, labels, strict=True):
        builder.add(ids, first_length, label)
    return builder.build()


# --- batches


def test_a_batch_is_padded_to_its_longest_sequence():
    batch = make_sequences(pad_token_id=4).batch(np.array([2, 1]))
    assert batch["input_ids"].tolist() == [[31, 32, 33], [21, 4, 4]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["outputs"].tolist() == [2, 1] and batch["labels"].tolist() == [9, 8]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_a_batch_without_padding_has_no_mask():
    batch = make_sequences().batch(np.array([0]))
    assert batch["attention_mask"] is None
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14, 15]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_a_batch_padded_to_a_given_length_always_has_a_mask():
    batch = make_sequences(pad_to=7).batch(np.array([0]))
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14, 15, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0]]
    assert make_sequences(pad_to=5).batch(np.array([0]))["attention_mask"].tolist() == [[1] * 5]


def test_the_first_sequences_are_padded_as_all_are():
    batch = make_sequences(pad_token_id=4, pad_to=6).head(1).batch(np.array([0]))
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14, 15, 4]]


def test_sequences_without_labels_give_batches_without_labels():
    sequences = make_sequences(labels=(None, None, None))
    assert sequences.labels is None and "labels" not in sequences.batch(np.array([1]))
    assert len(sequences) == 3 and sequences.lengths.tolist() == [5, 1, 3]


def test_scores_stay_fractions():
    builder = SequencesBuilder(99)
    builder.add([1, 2], 2, 3.8)
    labels = builder.build(np.float32).batch(np.array([0]))["labels"]
    assert labels.dtype == torch.float32 and labels.tolist() == pytest.approx([3.8])


def test_writing_to_a_batch_leaves_the_data_alone():
    sequences = make_sequences()
    batch = sequences.batch(np.array([0, 2]))
    for value in batch.values():
        value.fill_(0)
    assert sequences.batch(np.array([0]))["input_ids"].tolist() == [[11, 12, 13, 14, 15]]
    assert sequences.labels.tolist() == [7, 8, 9]


# --- the builder


@pytest.mark.parametrize("vocab_size, largest, width", [(1 << 16, 65535, 2), ((1 << 16) + 1, 65536, 4)])
def test_a_token_takes_as_many_bytes_as_the_vocabulary_needs(vocab_size, largest, width):
    sequences = make_sequences([([0, largest], 2)], [None], vocab_size=vocab_size)
    assert sequences.ids.itemsize == width
    assert sequences.batch(np.array([0]))["input_ids"].tolist() == [[0, largest]]


def test_mapped_ids_give_the_same_batches_and_leave_no_file(tmp_path):
    mapped = make_sequences(folder=tmp_path)
    assert isinstance(mapped.ids, np.memmap)
    assert not list(tmp_path.iterdir())
    for name, value in make_sequences().batch(np.array([2, 0])).items():
        assert torch.equal(mapped.batch(np.array([2, 0]))[name], value)


def test_an_empty_data_set_is_built(tmp_path):
    assert len(SequencesBuilder(99).build()) == len(SequencesBuilder(99, tmp_path).build()) == 0


# --- the order of training and evaluation


def make_lengths(count):
    return np.random.default_rng(1).integers(3, 60, count)


@pytest.mark.parametrize("bucketed", [True, False])
@pytest.mark.parametrize("count", [1, 13, 14, 13 * BUCKET_BATCHES + 5])
def test_an_epoch_has_each_example_once_and_at_most_one_short_batch(count, bucketed):
    batches = epoch_batches(make_lengths(count), 13, seed=3, epoch=0, bucketed=bucketed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert sorted(map(len, batches), reverse=True) == [13] * (count // 13) + [count % 13] * (count % 13 > 0)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def order(seed, epoch):
        np.random.seed(seed * 7 + epoch)  # the global state has no say
        return [batch.tolist() for batch in epoch_batches(make_lengths(101), 13, seed, epoch)]

    first = order(3, 0)
    np.random.seed(99)
    assert order(3, 0) == first
    assert order(3, 1) != first and order(4, 0) != first
    assert {frozenset(batch) for batch in order(3, 1)} != {frozenset(batch) for batch in first}


def waste(lengths, batches):
    """Padding as a share of all positions."""
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    return 1 - lengths.sum() / padded


def test_bucketed_batches_waste_less_on_padding():
    lengths = make_lengths(1001)
    assert waste(lengths, epoch_batches(lengths, 13, 3, 0)) < 0.1
    assert waste(lengths, epoch_batches(lengths, 13, 3, 0, bucketed=False)) > 0.3


def test_bucketed_batches_come_in_no_order_of_length():
    lengths = make_lengths(1001)
    means = [lengths[batch].mean() for batch in epoch_batches(lengths, 13, 3, 0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_evaluation_starts_with_the_longest_examples():
    lengths = make_lengths(29)
    batches = sorted_batches(lengths, 8)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(29)) and [len(batch) for batch in batches] == [8, 8, 8, 5]
    assert (np.diff(lengths[order]) <= 0).all()


def test_token_batches_hold_every_row_once_and_no_more_tokens_than_asked_for():
    lengths = np.random.default_rng(1).integers(3, 60, 230)
    found = token_batches(lengths, 400)
    order = np.concatenate(found)
    assert sorted(order.tolist()) == list(range(230)) and (np.diff(lengths[order]) <= 0).all()
    assert all(len(rows) * lengths[rows].max() <= 400 for rows in found)
    assert all(lengths[rows].min() == lengths[rows].max() or len(rows) * lengths[rows].max() <= 100 for rows in found)
    assert [len(rows) for rows in token_batches(lengths[:4], 1)] == [1] * 4
    assert token_batches(lengths[:0], 400) == []


# --- pregenerated epochs


def instance(tokens="[CLS] the film is good [SEP] fine plot [SEP]", second=3):
    tokens = tokens.split()
    return {"tokens": tokens, "segment_ids": [0] * (len(tokens) - second) + [1] * second}


def write_epoch(folder, number=0, lines=(), count=None, **metrics):
    """An epoch file and its metrics; lines are instances or text as it stands."""
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"epoch_{number}.json").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    values = {"num_training_examples": len(lines) if count is None else count, "max_seq_len": 31, **metrics}
    (folder / f"epoch_{number}_metrics.json").write_text(json.dumps(values), encoding="utf-8")


def read_first_epoch(place, **options):
    path, metrics = pregenerated_epochs(place)[0]
    return read_epoch(path, metrics, make_tokenizer(), 31, **options)


def error_of(function, *args, **kwargs):
    """The message of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("mapped", [False, True])
def test_pregenerated_instances_become_ids_and_segments(tmp_path, mapped):
    write_epoch(tmp_path, 0, [instance(), instance("[CLS] bad song [SEP]", 0)])
    before = set(tmp_path.iterdir())
    batch = read_first_epoch(tmp_path, folder=tmp_path if mapped else None).batch(np.array([0, 1]))
    words = [[VOCABULARY[token] for token in row] for row in batch["input_ids"].tolist()]
    assert words == [instance()["tokens"], ["[CLS]", "bad", "song", "[SEP]", *["[PAD]"] * 5]]
    assert batch["token_type_ids"].tolist() == [[0] * 6 + [1] * 3, [0] * 9]
    assert "labels" not in batch
    assert set(tmp_path.iterdir()) == before


def test_a_limit_reads_the_first_instances_only(tmp_path):
    write_epoch(tmp_path, 0, [instance(), instance("[CLS] bad song [SEP]", 0), "not read"])
    assert read_first_epoch(tmp_path, limit=2).lengths.tolist() == [9, 4]
    assert "line 3" in error_of(read_first_epoch, tmp_path)


@pytest.mark.parametrize(
    "line, words",
    [
        ("{broken", "expected a JSON object with tokens and segment_ids"),
        ("[1, 2]", "expected a JSON object with tokens and segment_ids"),
        ("", "expected a JSON object with tokens and segment_ids"),
        ({"tokens": ["[CLS]", "[SEP]"]}, "'segment_ids' is missing, expected a list of 0 and 1"),
        ({"tokens": ["[CLS]", "warmly"], "segment_ids": [0, 0]}, "'warmly' is not in the vocabulary"),
        ({"tokens": ["[CLS]", ["the"]], "segment_ids": [0, 0]}, "['the'] is not in the vocabulary"),
        ({"tokens": 5, "segment_ids": [0, 0]}, "tokens is 5, expected a list of tokens"),
        ({"tokens": ["[CLS]", "[SEP]"], "segment_ids": [0]}, "segment_ids are not 2 numbers, 0 and then 1"),
        ({"tokens": ["[CLS]", "[SEP]"], "segment_ids": [1, 0]}, "segment_ids are not 2 numbers, 0 and then 1"),
        ({"tokens": ["[CLS]", "[SEP]"], "segment_ids": [0, 5]}, "segment_ids are not 2 numbers, 0 and then 1"),
        ({"tokens": ["[CLS]", "[SEP]"], "segment_ids": [0, 0.5]}, "segment_ids are not 2 numbers, 0 and then 1"),
        ('{"tokens": ["[CLS]", "[SEP]"], "segment_ids": [0, 1e400]}', "segment_ids are not 2 numbers, 0 and then 1"),
        (instance("[CLS] " + "the " * 30 + "[SEP]", 0), "32 tokens, --max_seq_length is 31"),
    ],
)
def test_a_line_that_is_no_instance_is_told_with_its_number(tmp_path, line, words):
    write_epoch(tmp_path, 0, [instance(), instance(), line])
    message = error_of(read_first_epoch, tmp_path)
    assert f"{tmp_path / 'epoch_0.json'} line 3: " in message and words in message


def test_a_line_that_is_not_utf_8_is_told_with_its_number(tmp_path):
    write_epoch(tmp_path, 0, [instance(), instance()])
    path = tmp_path / "epoch_0.json"
    path.write_bytes(path.read_bytes() + b'{"tokens": ["\xff"]}\n')
    assert f"{path} line 3: " in error_of(read_first_epoch, tmp_path)


def test_another_number_of_lines_than_the_metrics_tell_is_told(tmp_path):
    write_epoch(tmp_path, 0, [instance(), instance()], count=3)
    message = error_of(read_first_epoch, tmp_path)
    assert "epoch_0.json: 2 sequences" in message and "3" in message


def test_epochs_are_found_by_number_up_to_the_first_without_metrics(tmp_path):
    for number in (0, 1, 2, 10):
        write_epoch(tmp_path, number, [instance()] * (number + 1))
    (tmp_path / "epoch_2_metrics.json").unlink()  # still being written
    epochs = pregenerated_epochs(tmp_path)
    assert [path.name for path, _ in epochs] == ["epoch_0.json", "epoch_1.json"]
    assert [metrics["num_training_examples"] for _, metrics in epochs] == [1, 2]


def test_a_folder_without_epochs_is_told_with_the_script_that_makes_them(tmp_path):
    message = error_of(pregenerated_epochs, tmp_path)
    assert str(tmp_path) in message and "pregenerate_training_data.py" in message


def test_a_missing_epoch_file_is_told(tmp_path):
    write_epoch(tmp_path, 0, [instance()])
    (tmp_path / "epoch_0.json").unlink()
    assert "epoch_0.json: missing" in error_of(pregenerated_epochs, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"num_training_examples": "many", "max_seq_len": 31}'])
def test_a_malformed_metrics_file_is_told(tmp_path, text):
    write_epoch(tmp_path, 0, [instance()])
    (tmp_path / "epoch_0_metrics.json").write_text(text, encoding="utf-8")
    assert "epoch_0_metrics.json" in error_of(pregenerated_epochs, tmp_path)


# --- task files


def write_rows(path, *rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def words_of(sequences, row):
    ids = sequences.batch(np.array([row]))["input_ids"][0].tolist()
    return " ".join(VOCABULARY[token] for token in ids)


def encode(name, path, *args, **kwargs):
    task = find_task(name)
    return task.kind.encode(TaskFile(path, task), *args, **kwargs)


def test_a_task_file_becomes_ids_and_class_indices(tmp_path):
    path = write_rows(tmp_path / "dev.tsv", ("sentence", "label"), ("a good film .", "1"), ("cold songs", "0"))
    sequences = encode("SST-2", path, make_tokenizer(), Lengths(31), ["0", "1"])
    assert words_of(sequences, 0) == "[CLS] a good film . [SEP]"
    assert words_of(sequences, 1) == "[CLS] cold song ##s [SEP]"
    assert sequences.labels.tolist() == [1, 0] and sequences.labels.dtype == np.int64
    assert sequences.batch(np.array([0]))["token_type_ids"].sum() == 0


@pytest.mark.parametrize("pad, length", [(False, 6), (True, 31)])
def test_batches_are_padded_to_the_longest_sequence_or_on_demand_to_the_maximum(tmp_path, pad, length):
    path = write_rows(tmp_path / "dev.tsv", ("sentence", "label"), ("a good film .", "1"), ("film", "0"))
    sequences = encode("SST-2", path, make_tokenizer(), Lengths(31), ["0", "1"], pad=pad)
    assert sequences.batch(np.array([0, 1]))["input_ids"].shape == (2, length)


def test_class_indices_follow_the_order_of_the_models_logits(tmp_path):
    path = write_rows(tmp_path / "dev.tsv", ("sentence", "label"), ("good", "1"), ("cold", "0"))
    sequences = encode("SST-2", path, make_tokenizer(), Lengths(31), ["1", "0"])
    assert sequences.labels.tolist() == [0, 1]


def test_a_pair_of_texts_becomes_two_segments_and_is_cut_to_length(tmp_path):
    header = ("index", "sentence1", "sentence2", "label")
    path = write_rows(tmp_path / "dev.tsv", header, ("0", "the film is good", "warm plot", "entailment"))
    task_file = TaskFile(path, find_task("RTE"))
    sequences = task_file.task.kind.encode(task_file, make_tokenizer(), Lengths(31), ["entailment", "not_entailment"])
    assert words_of(sequences, 0) == "[CLS] the film is good [SEP] warm plot [SEP]"
    assert sequences.batch(np.array([0]))["token_type_ids"].tolist() == [[0] * 6 + [1] * 3]
    sequences = task_file.task.kind.encode(task_file, make_tokenizer(), Lengths(7), ["entailment", "not_entailment"])
    assert words_of(sequences, 0) == "[CLS] the film [SEP] warm plot [SEP]"


def test_regression_labels_are_scores(tmp_path):
    header = ("index", "sentence1", "sentence2", "score")
    path = write_rows(tmp_path / "dev.tsv", header, ("0", "good film", "fine film", "3.8"))
    sequences = encode("STS-B", path, make_tokenizer(), Lengths(31), [])
    assert sequences.labels.dtype == np.float32 and sequences.labels.tolist() == pytest.approx([3.8])


def test_a_test_set_has_no_labels_and_a_limit_cuts_it(tmp_path):
    make_sst2(tmp_path, test=7)
    task_file = TaskFile(tmp_path / "test.tsv", find_task("SST-2"), labelled=False)
    assert len(task_file.task.kind.encode(task_file, make_tokenizer(), Lengths(31), ["0", "1"])) == 7
    sequences = task_file.task.kind.encode(task_file, make_tokenizer(), Lengths(31), ["0", "1"], limit=3)
    assert len(sequences) == 3 and sequences.labels is None
