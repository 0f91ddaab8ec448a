"""A student projected from its teacher: a copy where the sizes are equal, near it where they are not."""

import pytest
import torch
from tiny import STUDENT, TEACHER, VOCABULARY

from transformer.data import SequencesBuilder
from transformer.distillation import TransformerLearner, attention_loss, layer_map, relation_loss
from transformer.file_utils import UserError
from transformer.initialization import initialize_from_teacher, low_rank
from transformer.modeling import BertConfig, TinyBertForPreTraining
from transformer.settings import Matching
from transformer.training import sum_by_kind

SIZES = {"vocab_size": len(VOCABULARY), "initializer_range": 0.2}


def make_teacher(**overrides):
    torch.manual_seed(2)
    teacher = TinyBertForPreTraining(BertConfig(**{**SIZES, **TEACHER, **overrides}))
    for name, parameter in teacher.named_parameters():
        if name.endswith(("bias", "LayerNorm.weight")):  # as in a trained model: neither 0 nor 1
            parameter.data += torch.randn_like(parameter) * 0.1
    return teacher


def make_student(**overrides):
    torch.manual_seed(5)
    return TinyBertForPreTraining(BertConfig(**{**SIZES, **STUDENT, "fit_size": TEACHER["hidden_size"], **overrides}))


def make_batches():
    generator = torch.Generator().manual_seed(8)
    builder = SequencesBuilder(len(VOCABULARY))
    for length in torch.randint(3, 20, (60,), generator=generator).tolist():
        builder.add(torch.randint(5, len(VOCABULARY), (length,), generator=generator).tolist(), length // 2)
    sequences = builder.build()
    return [sequences.batch(rows) for rows in torch.arange(60).reshape(-1, 12).numpy()]


def losses(student, teacher, mapping="uniform", attention="scores"):
    matching = Matching(layer_map=mapping, attention_loss=attention)
    compare = relation_loss if attention == "relations" else attention_loss
    learner = TransformerLearner(student, teacher, compare, matching=matching).eval()
    with torch.no_grad():
        found = [sum_by_kind(learner(batch)) for batch in make_batches()]
    return {name: sum(each[name].item() for each in found) / len(found) for name in found[0]}


def initialized(teacher, mapping="uniform", **overrides):
    student = make_student(**overrides)
    layers = layer_map(student.config.num_hidden_layers, teacher.config.num_hidden_layers, mapping)
    initialize_from_teacher(student, teacher, layers, make_batches())
    return student


def test_a_student_of_its_teacher_s_size_is_its_teacher():
    teacher = make_teacher()
    student = initialized(teacher, **TEACHER)
    found = losses(student, teacher)
    assert found["att_loss"] < 1e-8 and found["rep_loss"] < 1e-8
    assert losses(make_student(**TEACHER), teacher)["rep_loss"] > 1


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 4, "hidden_size": 16},
        {"intermediate_size": 7},
        {"intermediate_size": 55},
        {"max_position_embeddings": 41},
        {"fit_per_layer": True},
    ],
    ids=str,
)
def test_a_smaller_student_starts_nearer_to_its_teacher_than_at_random(overrides):
    teacher = make_teacher()
    found, drawn = losses(initialized(teacher, **overrides), teacher), losses(make_student(**overrides), teacher)
    assert found["rep_loss"] < 0.75 * drawn["rep_loss"]
    assert found["att_loss"] < drawn["att_loss"]


def test_a_wider_student_holds_its_teacher_s_states_and_nothing_beyond():
    teacher = make_teacher()
    wider = {**TEACHER, "hidden_size": 32}
    found, drawn = losses(initialized(teacher, **wider), teacher), losses(make_student(**wider), teacher)
    assert found["rep_loss"] < 0.2 * drawn["rep_loss"]


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12])
def test_other_head_counts_start_too(heads):
    teacher = make_teacher()
    found = losses(initialized(teacher, num_attention_heads=heads), teacher, attention="relations")
    drawn = losses(make_student(num_attention_heads=heads), teacher, attention="relations")
    assert found["rep_loss"] < 0.75 * drawn["rep_loss"]


@pytest.mark.parametrize("mapping", ["top", "bottom", "last", "1,3"])
def test_every_mapping_can_start_a_student(mapping):
    teacher = make_teacher()
    found, drawn = losses(initialized(teacher, mapping), teacher, mapping), losses(make_student(), teacher, mapping)
    assert found["rep_loss"] < drawn["rep_loss"]


def test_the_embeddings_are_the_best_that_the_width_allows():
    teacher, batch = make_teacher(), make_batches()[0]
    student = initialized(teacher, **{**TEACHER, "hidden_size": 20})
    with torch.no_grad():
        own = student.bert.eval()(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        wanted = teacher.bert.eval()(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        projected = student.project(own.hidden_states)[0]
    correlation = torch.corrcoef(torch.stack([projected.flatten(), wanted.hidden_states[0].flatten()]))[0, 1]
    assert correlation > 0.95


def test_low_rank_factors_are_the_best_ones():
    product = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(product)
    for rank in (1, 3, 5, 6):
        first, second = low_rank(product, rank)
        assert first.shape == (rank, 7) and second.shape == (rank, 5)
        error = (product - first.T @ second).square().sum().item()
        assert error == pytest.approx(values[rank:].square().sum().item(), abs=1e-12)


def test_the_result_depends_on_the_arguments_alone_and_the_teacher_is_left_as_it_was():
    teacher = make_teacher().train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    first, second = initialized(teacher), initialized(teacher)
    for (name, value), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
        assert value.isfinite().all(), name
    assert teacher.training and all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_a_projection_of_another_width_is_refused():
    with pytest.raises(UserError, match="projects onto width 23, the teacher has 24"):
        initialized(make_teacher(), fit_size=23)
