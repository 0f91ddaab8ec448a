"""Readers fed with anything at all: they read it, or refuse it in one line; the tokenizer agrees with Hugging Face's.

benchmarks/fuzz.py tries many more.
"""

import json
import zipfile

import numpy as np
import pytest
import torch
from test_tokenization import comparable_characters, hugging_face, small_vocab
from tiny import VOCABULARY, make_teacher, make_tokenizer

from transformer.corpus import read_blocks
from transformer.epochs import read_epoch
from transformer.file_utils import UserError
from transformer.glue import TaskFile
from transformer.json_file import parse_json, read_json
from transformer.modeling import BertConfig, load_state_dict
from transformer.outputs import Output
from transformer.own_tasks import find_task
from transformer.settings import Provenance
from transformer.tensor_file import check_tensors, read_array, read_tensors
from transformer.tokenization import BertTokenizer, load_vocab
from transformer.vectors import WordVectors

hypothesis = pytest.importorskip("hypothesis")
from broken import NO_OBJECTS, descriptions, one_wrong, valid_objects, wrong_arrays, wrong_tensors  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402  (after the line above)
from hypothesis import strategies as st  # noqa: E402

# One example may take long on a busy machine; the folder of a test is the same for all its examples.
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile(
    "suite", max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=UNCHECKED
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


DESCRIPTIONS = descriptions()


@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_what_a_description_allows_is_read_and_one_thing_wrong_is_named(name):
    fields = DESCRIPTIONS[name]

    @settings(max_examples=10)
    @given(valid_objects(fields), one_wrong(fields))
    def read(good, wrong):
        assert json.dumps(parse_json(json.dumps(good), "file", 3, fields)) == json.dumps(good)
        with pytest.raises(UserError, match=f"^file line 3: '?{wrong[1]}'? is .*, expected "):
            parse_json(json.dumps(wrong[0]), "file", 3, fields)

    read()


@pytest.mark.parametrize("what", sorted(set(NO_OBJECTS) - {"too large"}))
def test_a_file_without_a_json_object_is_refused_in_one_line(tmp_path, what):
    (tmp_path / "a.json").write_bytes(NO_OBJECTS[what])
    with pytest.raises(UserError, match=f"^{tmp_path / 'a.json'}.*expected .*$") as refused:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_a_json_file_beyond_the_limit_is_refused_unparsed(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # nothing of it is on the disk
    with pytest.raises(UserError, match="larger than 32 MiB"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("what", sorted(wrong_tensors()))
def test_a_tensor_that_cannot_be_a_weight_is_refused_by_its_key(tmp_path, what):
    with pytest.raises(UserError, match="file: weight (is a tensor of|holds NaN)"):
        check_tensors({"bias": torch.ones(3), "weight": wrong_tensors()[what]}, "file")


def test_ids_and_every_kind_of_plain_floating_point_number_are_weights(tmp_path):
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    state = {str(kind): torch.ones(3, 5).to(kind) for kind in kinds} | {"position_ids": torch.arange(3)}
    state |= {"transposed": torch.ones(3, 5).T, "part": torch.ones(9)[2:5]}
    torch.save(state, tmp_path / "a.bin")
    assert read_tensors(tmp_path / "a.bin").keys() == state.keys()
    with pytest.raises(UserError, match="expected a dictionary of tensors"):
        check_tensors({3: torch.ones(3)}, "file")


def test_compressed_weights_are_refused_before_they_are_unpacked(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "a.bin") as whole, zipfile.ZipFile(tmp_path / "b.bin", "w", 8) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(UserError, match="b.bin: cannot be read as weights: its parts are larger than the file"):
        read_tensors(tmp_path / "b.bin")


@pytest.mark.parametrize("array", [np.arange(9, dtype=np.uint16), np.ones((3, 5), np.float32)], ids=["ids", "logits"])
def test_a_file_of_anything_but_the_array_is_refused(tmp_path, array):
    path = tmp_path / "a.npy"
    np.save(path, array)
    assert np.array_equal(read_array(path, [array.dtype], array.ndim), array)
    for what, data in wrong_arrays(array).items():
        path.write_bytes(data)
        if what != "none":  # an array too, which its reader compares with the others
            with pytest.raises(ValueError, match="no array of NumPy's in it|an array .* expected [12] dim"):
                read_array(path, [array.dtype], array.ndim)


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
        output = Output(tmp_path / "run.json", provenance, {}, replaces=("run.json",))
        read_or_refuse(output.__enter__)
