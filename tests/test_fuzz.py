"""Readers fed with anything at all: they read it, or refuse it in one line; the tokenizer agrees with Hugging Face's.

benchmarks/fuzz.py tries many more.
"""

import json

import pytest
import torch
from test_tokenization import comparable_characters, hugging_face, small_vocab
from tiny import VOCABULARY, make_teacher, make_tokenizer

from transformer.corpus import read_blocks
from transformer.epochs import read_epoch
from transformer.file_utils import UserError
from transformer.glue import TaskFile
from transformer.modeling import BertConfig, load_state_dict
from transformer.outputs import Output
from transformer.own_tasks import find_task
from transformer.settings import Provenance
from transformer.tokenization import BertTokenizer, load_vocab
from transformer.vectors import WordVectors

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402  (after the line above)
from hypothesis import strategies as st  # noqa: E402

# One example may take long on a busy machine; the folder of a test is the same for all its examples.
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile(
    "suite", max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=UNCHECKED
)
settings.load_profile("suite")

CHARACTERS = comparable_characters()
TEXT = st.lists(
    st.one_of(st.sampled_from(CHARACTERS), st.sampled_from(["the", " ", "[MASK]", "ing", "\u0301", "中", "Σ", "é"])),
    max_size=30,
).map("".join)
# Lines with the separators that readers split at, and bytes that are no text.
BYTES = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [
                b"\t",
                b"\n",
                b"\r\n",
                b" ",
                b"\xef\xbb\xbf",
                b"\0",
                b'"',
                b"sentence\tlabel\n",
                b"a\t1\n",
                b"a 1 2\n",
                b"2 2\n",
                b"nan",
                b"1e999",
                b'{"text": "a b"}\n',
                b"{",
                b"\xe2\x80\xa8",
            ]
        ),
    ),
    max_size=12,
).map(b"".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def read_or_refuse(read):
    """The result of a reader, or None where it refuses; a refusal is one line that says something."""
    try:
        return read()
    except UserError as error:
        assert str(error).strip()
        return None


@pytest.mark.parametrize("lower", [True, False])
def test_the_tokenizer_agrees_with_hugging_face(tmp_path_factory, lower):
    vocab = small_vocab()
    hf = hugging_face(tmp_path_factory.mktemp("hf"), vocab, do_lower_case=lower)
    ours = BertTokenizer(vocab, do_lower_case=lower)

    @given(TEXT)
    def agree(text):
        assert ours.tokenize(text) == hf.tokenize(text)
        assert ours.ids(text) == ours.convert_tokens_to_ids(hf.tokenize(text))

    agree()


@given(data=BYTES)
@pytest.mark.parametrize(
    "task", ["SST-2", "STS-B", *(pytest.param(name, marks=pytest.mark.slow) for name in ("MRPC", "CoLA", "QQP"))]
)
def test_a_task_file_is_read_or_refused(tmp_path, task, data):
    path = tmp_path / "train.tsv"
    path.write_bytes(data)
    for row in read_or_refuse(lambda: list(TaskFile(path, find_task(task)))) or []:
        assert row.label is not None and not any("\n" in text for text in row.texts)


@given(data=BYTES)
def test_word_vectors_are_read_or_refused(tmp_path, data):
    path = tmp_path / "glove.txt"
    path.write_bytes(data)
    vectors = read_or_refuse(lambda: WordVectors(path))
    if vectors is not None:
        assert len(vectors.words) == len(vectors.vectors) and torch.from_numpy(vectors.vectors).isfinite().all()
        vectors.neighbours(list(vectors.index), 3)


@given(data=BYTES)
@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl", "corpus.txt.gz"])
def test_a_corpus_is_read_or_refused(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    read_or_refuse(lambda: list(read_blocks([path])))


@given(data=st.dictionaries(st.sampled_from([*BertConfig().to_dict(), "id2label", "surplus"]), JSON, max_size=4))
def test_a_config_is_read_or_refused(tmp_path, data):
    (tmp_path / "config.json").write_text(json.dumps(data), encoding="utf-8")
    config = read_or_refuse(lambda: BertConfig.from_pretrained(tmp_path))
    if config is not None:
        assert config.hidden_size % config.num_attention_heads == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return (make_teacher(tmp_path_factory.mktemp("teacher")) / "pytorch_model.bin").read_bytes()


@given(edit=st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9), st.booleans()))
def test_a_damaged_checkpoint_is_read_or_refused(tmp_path, checkpoint, edit):
    place, data, cut = edit
    place %= len(checkpoint)
    damaged = checkpoint[:place] + data + (b"" if cut else checkpoint[place + len(data) :])
    (tmp_path / "pytorch_model.bin").write_bytes(damaged)
    state = read_or_refuse(lambda: load_state_dict(tmp_path))
    assert state is None or all(value.isfinite().all() for value in state.values())


@given(data=BYTES)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_weights_that_are_none_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert not read_or_refuse(lambda: load_state_dict(tmp_path))


@given(line=st.one_of(JSON.map(json.dumps), BYTES.map(lambda data: data.decode("utf-8", "replace"))))
def test_an_epoch_is_read_or_refused(tmp_path, line):
    good = json.dumps(
        {
            "tokens": ["[CLS]", "the", "[SEP]"],
            "segment_ids": [0, 0, 0],
            "is_random_next": False,
            "masked_lm_positions": [],
            "masked_lm_labels": [],
        }
    )
    path = tmp_path / "epoch_0.json"
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    metrics = {"num_training_examples": 2, "max_seq_len": 31}
    read_or_refuse(lambda: read_epoch(path, metrics, make_tokenizer(), 31))


@given(data=BYTES)
def test_a_vocabulary_is_read_or_refused(tmp_path, data):
    (tmp_path / "vocab.txt").write_bytes("\n".join(VOCABULARY[:5]).encode() + b"\n" + data)
    read_or_refuse(lambda: load_vocab(tmp_path / "vocab.txt"))
    read_or_refuse(lambda: BertTokenizer.from_pretrained(tmp_path))


@given(data=JSON)
def test_a_tokenizer_config_is_read_or_refused(tmp_path, data):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    names = ["do_lower_case", "strip_accents", "tokenize_chinese_chars", "unk_token", "model_max_length"]
    for value in (data, {name: data for name in names}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(value), encoding="utf-8")
        read_or_refuse(lambda: BertTokenizer.from_pretrained(tmp_path))


@given(data=JSON, finished=st.booleans())
def test_a_record_of_a_run_is_understood_or_refused(tmp_path, data, finished):
    provenance = Provenance("x", {"seed": 1}, frozenset({"seed"}), {}, overwrite=False, data_url=None)
    for value in (data, {"script": "x", "settings": data, "inputs": data, "progress": data, "finished": finished}):
        (tmp_path / "run.json").write_text(json.dumps(value), encoding="utf-8")
        output = Output(tmp_path / "run.json", provenance, {}, replaces=[tmp_path / "run.json"])
        read_or_refuse(output.__enter__)
