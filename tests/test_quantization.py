"""int8: linear maps and embeddings with a scale for each row."""

import copy
import types
from unittest import mock

import pytest
import torch
from tiny import STUDENT, VOCABULARY
from torch import nn

from transformer.checkpoint import load_state_dict
from transformer.files import UserError
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.processes import PRECISIONS, Processes, choose_teacher_precision
from transformer.quantization import Int8Embedding, Int8Linear, quantize, set_precision


def make_model(**values):
    torch.manual_seed(5)
    config = BertConfig(vocab_size=len(VOCABULARY), initializer_range=0.3, **{**STUDENT, **values})
    return TinyBertForSequenceClassification(config).eval()


def ragged():
    """Input ids, token types and mask (3, 7) of sequences of 7, 4 and 2 tokens."""
    ids = torch.arange(5, 26).reshape(3, 7)
    mask = torch.tensor([[1] * count + [0] * (7 - count) for count in (7, 4, 2)])
    return ids, (ids > 15).long(), mask


@pytest.mark.parametrize("rows", [1, 3, 13])
def test_a_linear_map_errs_by_a_hundredth_of_its_range_at_most(rows):
    torch.manual_seed(1)
    linear, hidden = nn.Linear(31, 17), torch.randn(rows, 5, 31)
    found, expected = Int8Linear(linear)(hidden), linear(hidden)
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_each_row_has_its_own_scale_and_a_row_of_zeros_stays_so():
    matrix = torch.tensor([[1.27, -0.5], [0.0, 0.0], [12.7, 1.0]])
    embedding = Int8Embedding(matrix)
    assert embedding.int8_weight.tolist() == [[127, -50], [0, 0], [127, 10]]
    torch.testing.assert_close(embedding(torch.tensor([[2, 0], [1, 1]])), torch.stack([matrix[[2, 0]], matrix[[1, 1]]]))


def test_on_a_device_without_the_kernel_the_rounded_matrix_does_the_work():
    linear = nn.Linear(31, 17)
    int8, hidden = Int8Linear(linear), torch.randn(3, 31)
    with mock.patch("torch.backends.quantized", types.SimpleNamespace(engine="none")):
        found = int8(hidden)
    torch.testing.assert_close(found, hidden @ int8.matrix().T + linear.bias)
    assert ((int8.matrix() - linear.weight).abs().amax(1) <= int8.scale / 2 + 1e-7).all() and int8.packed is None


def test_a_quantized_encoder_gives_hidden_states_and_scores_close_to_its_own():
    model = make_model()
    ids, types, mask = ragged()
    with torch.no_grad():
        before = model.bert(ids, types, mask)
        after = quantize(copy.deepcopy(model)).bert(ids, types, mask)
    for found, expected in zip(
        (*after.hidden_states, *after.attention_scores), (*before.hidden_states, *before.attention_scores), strict=True
    ):
        assert found.shape == expected.shape
        assert 0 < (found - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_an_int8_folder_reads_back_the_same_logits_from_plain_tensors(tmp_path):
    model = quantize_folder(tmp_path)
    kinds = {value.dtype for value in load_state_dict(tmp_path).values()}
    assert kinds == {torch.int8, torch.float32}
    again = TinyBertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(*ragged())[0], model(*ragged())[0])
    assert again.num_parameters() == make_model().num_parameters()


def quantize_folder(folder):
    model = make_model(quantized="int8")
    model.save_pretrained(folder)
    return model


def test_new_weights_replace_packed_ones():
    model, other = make_model(quantized="int8"), make_model(quantized="int8", hidden_dropout_prob=0)
    with torch.no_grad():
        model.bert.pooler.dense.bias.fill_(1.0)
    before = model(*ragged())[0]
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(*ragged())[0], other(*ragged())[0]) and not torch.equal(model(*ragged())[0], before)


def test_another_type_of_number_is_refused():
    with pytest.raises(UserError, match="quantized is 'int4', expected int8 or no such key"):
        BertConfig(quantized="int4")


def test_no_answer_depends_on_the_rest_of_the_batch():
    torch.manual_seed(2)
    int8, hidden = Int8Linear(nn.Linear(31, 17)), torch.randn(3, 5, 31)
    hidden[1] *= 100  # a range for all would round the others to 0
    hidden[2, 1] = 0.5  # a token without a range
    whole = int8(hidden)
    for row in range(3):
        for token in range(5):
            assert torch.equal(int8(hidden[row, token : token + 1])[0], whole[row, token])
    assert torch.allclose(whole[2, 1], int8.matrix().sum(1) * 0.5 + int8.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, device, capability, chosen",
    [
        (None, "cpu", "AVX2", None),
        ("fp32", "cuda", "AVX2", "fp32"),
        ("bf16", "cpu", "DEFAULT", "bf16"),
        ("int8", "cpu", "DEFAULT", "int8"),
        ("auto", "cpu", "AVX512", "int8"),
        ("auto", "cpu", "DEFAULT", None),
        ("auto", "cuda", "AVX2", None),
    ],
)
def test_auto_takes_int8_where_the_processor_has_the_kernels(name, device, capability, chosen):
    with mock.patch("torch.backends.cpu.get_cpu_capability", lambda: capability):
        assert choose_teacher_precision(name, torch.device(device)) == chosen


def test_int8_is_refused_on_a_gpu():
    with pytest.raises(UserError, match="--teacher_precision int8: for CPUs only; expected auto, fp32 or bf16 on a"):
        choose_teacher_precision("int8", torch.device("cuda"))


@pytest.mark.parametrize("name, around", [("int8", "fp32"), ("bf16", "fp32"), ("fp32", "bf16")])
def test_a_teacher_teaches_in_its_own_precision(name, around, caplog):
    model, (ids, types, mask) = make_model(), ragged()
    expected = model.bert(ids, types, mask)
    here = Processes(torch.device("cpu"), dtype=PRECISIONS[around], teacher_precision=name)
    with caplog.at_level("INFO"), torch.no_grad(), here.autocast():
        teacher = set_precision(model, here)
        found, (logits, _) = teacher.bert(ids, types, mask), teacher(ids, types, mask)
    assert caplog.messages == [f"teacher in {name} (--teacher_precision)"]
    assert {logits.dtype, found.attention_scores[-1].dtype} == {torch.bfloat16 if name == "bf16" else torch.float32}
    assert type(teacher.bert.embeddings.word_embeddings) is nn.Embedding and type(teacher.classifier) is nn.Linear
    pairs = zip(found.hidden_states[1:], expected.hidden_states[1:], strict=True)
    errors = [((one.float() - other).norm() / other.norm()).item() for one, other in pairs]
    assert (max(errors) == 0) if name == "fp32" else (min(errors) > 0 and max(errors) < 0.05)
