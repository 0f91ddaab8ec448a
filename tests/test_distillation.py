"""Every loss against a loop over examples, heads and positions; the layer mapping; what the teacher may not do."""

import functools
import math

import pytest
import torch
from tiny import STUDENT, TEACHER, VOCABULARY

from transformer.distillation import (
    PredictionLearner,
    TransformerLearner,
    attention_loss,
    check_pair,
    check_same_vocabulary,
    hidden_loss,
    layer_map,
    loss_weights,
    prediction_loss,
    relation_heads,
    relation_loss,
    transformer_losses,
)
from transformer.file_utils import UserError
from transformer.modeling import BertConfig, TinyBertForPreTraining, TinyBertForSequenceClassification
from transformer.processes import Processes
from transformer.settings import Matching
from transformer.tasks.regression import REGRESSION
from transformer.tokenization import BertTokenizer
from transformer.training import sum_by_kind

LENGTHS = [7, 3, 1, 5]


def make_mask(lengths=LENGTHS, width=7):
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def make_pair(over_padding=False, student=(), teacher=(), model_class=TinyBertForPreTraining):
    """A learner of random models with weights large enough to differ, and its teacher."""
    torch.manual_seed(2)
    sizes = {"vocab_size": len(VOCABULARY), "initializer_range": 0.3}
    teacher = model_class(BertConfig(**{**sizes, **TEACHER, **dict(teacher)}))
    fit = {"fit_size": teacher.config.hidden_size}
    student = model_class(BertConfig(**{**sizes, **STUDENT, **fit, **dict(student)}))
    return TransformerLearner(student, teacher, matching=Matching(pad_to_max_length=over_padding)), teacher


def make_batch(mask):
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(1, len(VOCABULARY), mask.shape, generator=generator) * mask
    return {"input_ids": ids, "token_type_ids": (torch.arange(mask.shape[1]) > 1).long() * mask, "attention_mask": mask}


# --- the losses, restated


def test_the_attention_loss_is_the_mean_over_real_pairs_and_heads_of_each_example():
    student, teacher = torch.randn(2, 4, 3, 7, 7)
    total = 0.0
    for row, length in enumerate(LENGTHS):
        of_example = 0.0
        for head in range(3):
            for query in range(length):
                for key in range(length):
                    of_example += (student[row, head, query, key] - teacher[row, head, query, key]).item() ** 2
        total += of_example / (3 * length * length)
    loss = attention_loss(student, teacher, loss_weights(make_mask()).pairs)
    assert loss.item() == pytest.approx(total / len(LENGTHS), rel=1e-5)


def test_the_hidden_loss_is_the_mean_over_real_tokens_and_width_of_each_example():
    projected, teacher = torch.randn(2, 4, 7, 5)
    total = 0.0
    for row, length in enumerate(LENGTHS):
        of_example = 0.0
        for position in range(length):
            for column in range(5):
                of_example += (projected[row, position, column] - teacher[row, position, column]).item() ** 2
        total += of_example / (5 * length)
    loss = hidden_loss(projected, teacher, loss_weights(make_mask()).tokens)
    assert loss.item() == pytest.approx(total / len(LENGTHS), rel=1e-5)


def test_without_padding_a_mask_changes_no_loss():
    scores, hidden = torch.randn(2, 4, 3, 7, 7), torch.randn(2, 4, 7, 5)
    none = loss_weights(None)
    for over_padding in (False, True):
        full = loss_weights(make_mask([7] * 4), over_padding)
        assert attention_loss(*scores, full.pairs).item() == pytest.approx(attention_loss(*scores, none.pairs).item())
        assert hidden_loss(*hidden, full.tokens).item() == pytest.approx(hidden_loss(*hidden, none.tokens).item())


def test_the_weights_of_a_batch_sum_to_one():
    weights = loss_weights(make_mask())
    assert weights.tokens.sum().item() == pytest.approx(1.0) and weights.pairs.sum().item() == pytest.approx(1.0)
    assert weights.tokens.sum(dim=1).tolist() == pytest.approx([0.25] * 4)


def test_over_padding_is_the_references_mean_with_masked_scores_set_to_zero():
    student, teacher = torch.randn(2, 4, 3, 7, 7)
    projected, hidden = torch.randn(2, 4, 7, 5)
    mask = make_mask()
    weights = loss_weights(mask, over_padding=True)
    # The reference adds -10000 at masked keys, then replaces scores up to -100 by 0 on both sides.
    bias = (1.0 - mask.float())[:, None, None, :] * -10000.0
    student_masked, teacher_masked = (
        torch.where(scores + bias <= -1e2, torch.zeros(()), scores) for scores in (student, teacher)
    )
    expected = torch.nn.MSELoss()(student_masked, teacher_masked)
    assert attention_loss(student, teacher, weights.pairs).item() == pytest.approx(expected.item(), rel=1e-5)
    expected = torch.nn.MSELoss()(projected, hidden)
    assert hidden_loss(projected, hidden, weights.tokens).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_prediction_loss_is_the_soft_cross_entropy_over_rows_and_classes(temperature):
    student, teacher = 2 * torch.randn(2, 5, 3)
    total = 0.0
    for row in range(5):
        wanted = [math.exp(value / temperature) for value in teacher[row].tolist()]
        given = [math.exp(value / temperature) for value in student[row].tolist()]
        for label in range(3):
            total -= wanted[label] / sum(wanted) * math.log(given[label] / sum(given))
    assert prediction_loss(student, teacher, temperature).item() == pytest.approx(total / (5 * 3), rel=1e-5)


def test_the_prediction_loss_of_a_score_is_its_squared_distance_to_the_teachers():
    student, teacher = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.5], [0.0], [4.0]])
    assert REGRESSION.prediction_loss(student, teacher, 7.0).item() == pytest.approx((0.25 + 4.0 + 0.0) / 3)


def test_losses_of_half_precision_tensors_are_computed_in_float32():
    student, teacher = (torch.randn(2, 3, 5, 7, 7) * 50).to(torch.float16)
    loss = attention_loss(student * 6, teacher * 6)  # squared, these would overflow float16
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert hidden_loss(student[0] * 6, teacher[0] * 6).dtype == torch.float32


@pytest.mark.parametrize("masked", [True, False])
def test_the_sums_run_over_all_mapped_layers_and_the_embeddings(masked):
    learner, _ = make_pair()
    student, teacher = learner.student.eval(), learner.teacher
    batch = make_batch(make_mask() if masked else make_mask([7] * 4))
    inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    weights = loss_weights(batch["attention_mask"])
    with torch.no_grad():
        own, wanted = student.bert(*inputs), teacher.bert(*inputs)
        losses = sum_by_kind(transformer_losses(student, own, wanted, {0: 0, 1: 2, 2: 4}, weights))
        att_loss = attention_loss(own.attention_scores[0], wanted.attention_scores[1], weights.pairs)
        att_loss += attention_loss(own.attention_scores[1], wanted.attention_scores[3], weights.pairs)
        rep_loss = sum(
            hidden_loss(student.fit_dense(own.hidden_states[layer]), wanted.hidden_states[2 * layer], weights.tokens)
            for layer in range(3)
        )
    assert set(losses) == {"att_loss", "rep_loss"}
    assert losses["att_loss"].item() == pytest.approx(att_loss.item(), rel=1e-5)
    assert losses["rep_loss"].item() == pytest.approx(rep_loss.item(), rel=1e-5)


# --- padding


def test_the_loss_of_an_example_does_not_depend_on_its_padding():
    learner, _ = make_pair()
    learner.eval()
    batch = make_batch(make_mask())
    with torch.no_grad():
        together = learner(batch)
        alone = []
        for row, length in enumerate(LENGTHS):
            single = {name: value[row : row + 1, :length] for name, value in batch.items()}
            alone.append(learner({**single, "attention_mask": None}))
    for name, value in together.items():
        mean = sum(losses[name].item() for losses in alone) / len(alone)
        assert value.item() == pytest.approx(mean, rel=1e-5), name
        assert len({losses[name].item() for losses in alone}) == len(alone)


def test_more_padding_changes_the_loss_only_in_the_references_way():
    short, long = make_batch(make_mask([4, 3], 4)), make_batch(make_mask([4, 3], 9))
    long["input_ids"][:, :4], long["token_type_ids"][:, :4] = short["input_ids"], short["token_type_ids"]
    for over_padding in (False, True):
        learner, _ = make_pair(over_padding)
        learner.eval()
        with torch.no_grad():
            few, many = learner(short), learner(long)
        for name in few:
            same = few[name].item() == pytest.approx(many[name].item(), rel=1e-5)
            assert same != over_padding, name


# --- which layer learns from which


@pytest.mark.parametrize(
    "student, teacher, name, expected",
    [
        (2, 4, "uniform", [2, 4]),
        (4, 12, "uniform", [3, 6, 9, 12]),
        (3, 3, "uniform", [1, 2, 3]),
        (1, 5, "uniform", [5]),
        (3, 7, "top", [5, 6, 7]),
        (3, 7, "bottom", [1, 2, 3]),
        (4, 4, "top", [1, 2, 3, 4]),
        (4, 12, "2,5,8,11", [2, 5, 8, 11]),
        (3, 7, "7, 1,1", [7, 1, 1]),
    ],
)
def test_layers_map_as_they_are_named(student, teacher, name, expected):
    assert layer_map(student, teacher, name) == dict(enumerate([0, *expected]))


def test_the_last_layer_alone_may_learn():
    assert layer_map(3, 7, "last") == {0: 0, 3: 7}


@pytest.mark.parametrize("name", ["middle", "1,2", "0,1,2", "1,2,8", "1,2,3,4", "", "1,2,x", "-1,2,3", "1.5,2,3"])
def test_a_mapping_that_does_not_fit_is_refused(name):
    with pytest.raises(UserError, match="expected uniform, last, top, bottom, or 3 numbers from 1 to 7"):
        layer_map(3, 7, name)


@pytest.mark.parametrize("name", ["uniform", "top", "bottom", "last"])
def test_a_student_deeper_than_its_teacher_is_refused(name):
    with pytest.raises(UserError, match="5 layers.* 4"):
        layer_map(5, 4, name)


@pytest.mark.parametrize(
    "student, words",
    [
        ({"num_hidden_layers": 3}, ("4 layers", "student's 3", "num_hidden_layers")),
        ({"num_attention_heads": 3}, ("3 attention heads", "has 4", "num_attention_heads")),
    ],
)
def test_a_pair_that_does_not_fit_is_told_with_both_numbers(student, words):
    with pytest.raises(UserError) as caught:
        make_pair(student=student)
    assert all(word in str(caught.value) for word in words)
    assert "config.json" in str(caught.value)


def test_a_pair_may_differ_in_width_and_inner_size():
    check_pair(BertConfig(**STUDENT), BertConfig(**TEACHER))


def test_a_student_with_another_vocabulary_is_refused(tmp_path):
    tokenizer = BertTokenizer({token: index for index, token in enumerate(VOCABULARY)})
    check_same_vocabulary(tokenizer, tmp_path)  # a student without a vocabulary takes the teacher's
    tokenizer.save_pretrained(tmp_path)
    check_same_vocabulary(tokenizer, tmp_path)
    swapped = [*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]]
    other = BertTokenizer({token: index for index, token in enumerate(swapped)})
    with pytest.raises(UserError, match="vocab.txt"):
        check_same_vocabulary(other, tmp_path)


# --- relations, weights, and layers that are not needed


def restated_relation_loss(student, teacher, heads, lengths):
    """MiniLMv2's equations, by loops over examples, heads and queries."""
    total = 0.0
    for mine, wanted in zip(student, teacher, strict=True):  # queries, keys, values
        for row, length in enumerate(lengths):
            for head in range(heads):
                relations = []
                for projected in (mine, wanted):
                    width = projected.shape[2] // heads
                    vectors = projected[row, :length, head * width : (head + 1) * width]
                    relations.append((vectors @ vectors.T / math.sqrt(width)).softmax(dim=1))
                for query in range(length):
                    ours, theirs = relations[0][query], relations[1][query]
                    divergence = (theirs * (theirs / ours).log()).sum().item()
                    total += divergence / (heads * length * len(lengths))
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_relation_loss_is_computed_in_float32_whatever_the_precision(dtype):
    student, teacher = ([torch.randn(3, 7, width) * 60 for _ in range(3)] for width in (12, 24))
    exact = relation_loss(student, teacher, 3)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(relation_loss(student, teacher, 3), exact) and exact.isfinite()


def test_the_relation_loss_is_the_divergence_of_queries_keys_and_values():
    torch.manual_seed(4)
    student, teacher = torch.randn(3, 4, 7, 6), torch.randn(3, 4, 7, 15)
    expected = restated_relation_loss(student, teacher, 3, LENGTHS)
    assert relation_loss(student, teacher, 3, make_mask()).item() == pytest.approx(expected, rel=1e-4)
    whole = restated_relation_loss(student, teacher, 3, [7] * 4)
    assert relation_loss(student, teacher, 3).item() == pytest.approx(whole, rel=1e-4)
    assert relation_loss(teacher, teacher, 3, make_mask()).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "widths, heads", [((312, 768), 24), ((384, 768), 48), ((312, 1024), 8), ((312, 384), 24), ((7, 9), 1)]
)
def test_relation_heads_divide_both_widths(widths, heads):
    student, teacher = (BertConfig(hidden_size=width, num_attention_heads=1) for width in widths)
    assert relation_heads(student, teacher) == heads


def test_with_relations_heads_may_differ_and_every_weight_of_the_attention_learns():
    torch.manual_seed(2)
    sizes = {"vocab_size": len(VOCABULARY), "initializer_range": 0.3}
    teacher = TinyBertForPreTraining(BertConfig(**{**sizes, **TEACHER, "num_attention_heads": 6}))
    student = TinyBertForPreTraining(BertConfig(**{**sizes, **STUDENT, "fit_size": TEACHER["hidden_size"]}))
    with pytest.raises(UserError, match="4 attention heads, the teacher has 6.*--attention_loss relations"):
        TransformerLearner(student, teacher)
    learner = TransformerLearner(student, teacher, relation_loss, matching=Matching(attention_loss="relations")).eval()
    losses = learner(make_batch(make_mask()))
    assert set(losses) == {"att_loss/1", "att_loss/2", "rep_loss/0", "rep_loss/1", "rep_loss/2"}
    sum(value for name, value in losses.items() if name.startswith("att")).backward()
    for layer in student.bert.encoder.layer:
        heads = layer.attention.self
        assert all(part.weight.grad.abs().max() > 0 for part in (heads.query, heads.key, heads.value))


def test_weights_scale_the_two_kinds_of_losses():
    learner, teacher = make_pair()
    plain = learner.eval()(make_batch(make_mask()))
    matching = Matching(attention_weight=0.5, hidden_weight=3.0)
    weighted = TransformerLearner(learner.student, teacher, matching=matching)
    for name, value in weighted.eval()(make_batch(make_mask())).items():
        factor = 0.5 if name.startswith("att") else 3.0
        assert value.item() == pytest.approx(factor * plain[name].item(), rel=1e-5)


def test_layers_above_the_last_one_that_teaches_are_not_run():
    learner, teacher = make_pair()
    run = []
    for index, layer in enumerate(teacher.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
    learner = TransformerLearner(learner.student, teacher, matching=Matching(layer_map="bottom"))
    learner(make_batch(make_mask()))
    assert run == [0, 1]


def test_only_the_last_layer_learns_where_it_is_asked_for():
    learner, teacher = make_pair()
    learner = TransformerLearner(learner.student, teacher, matching=Matching(layer_map="last"))
    assert set(learner(make_batch(make_mask()))) == {"att_loss/2", "rep_loss/0", "rep_loss/2"}


# --- the teacher


def test_the_teacher_stays_in_eval_mode_whatever_the_learner_is_told():
    learner, teacher = make_pair(teacher={"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5})
    batch = make_batch(make_mask())
    inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    seen = []
    teacher.bert.register_forward_hook(lambda module, args, output: seen.append(output.pooled))
    learner.train()
    learner(batch)
    learner(batch)
    assert learner.student.training and not any(module.training for module in teacher.modules())
    assert torch.equal(seen[0], seen[1])
    with torch.no_grad():
        torch.testing.assert_close(teacher.bert(*inputs).pooled, seen[0])


def test_the_teacher_is_frozen_and_no_part_of_the_learner():
    learner, teacher = make_pair()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    own = {id(parameter) for parameter in learner.parameters()}
    assert own == {id(parameter) for parameter in learner.student.parameters()}
    assert all(key.startswith("student.") for key in learner.state_dict())
    assert len(learner.state_dict()) == len(learner.student.state_dict())
    sum(learner(make_batch(make_mask())).values()).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_losses_reach_everything_of_the_student_but_its_heads():
    learner, _ = make_pair()
    sum(learner(make_batch(make_mask())).values()).backward()
    without = {name for name, parameter in learner.student.named_parameters() if parameter.grad is None}
    assert without and all(name.startswith(("cls.", "bert.pooler.")) for name in without)


def test_the_teacher_is_asked_for_the_scores_of_mapped_layers_only():
    learner, teacher = make_pair()
    seen = []
    teacher.bert.register_forward_hook(lambda module, args, output: seen.append(output.attention_scores))
    learner(make_batch(make_mask()))
    assert [scores is not None for scores in seen[0]] == [False, True, False, True]


def test_the_learner_works_on_classifiers_too():
    learner, _ = make_pair(model_class=TinyBertForSequenceClassification)
    losses = learner.eval()(make_batch(make_mask()))
    assert all(value.item() > 0 for value in losses.values())


def test_the_prediction_learner_looks_up_the_teachers_logits_by_row():
    torch.manual_seed(2)
    config = BertConfig(vocab_size=len(VOCABULARY), **STUDENT, num_labels=3)
    student = TinyBertForSequenceClassification(config).eval()
    logits = torch.randn(9, 3)
    learner = PredictionLearner(student, logits, functools.partial(prediction_loss, temperature=2.0))
    batch = {**make_batch(make_mask()), "outputs": torch.tensor([8, 0, 5, 3])}
    with torch.no_grad():
        own, _ = student(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        losses = learner(batch)
    assert losses["cls_loss"].item() == pytest.approx(prediction_loss(own, logits[[8, 0, 5, 3]], 2.0).item())
    assert losses["cls_loss"].item() != pytest.approx(prediction_loss(own, logits[:4], 2.0).item())
    assert all(key.startswith("student.") for key in learner.state_dict())


@pytest.mark.parametrize("name", ["scores", "relations"])
def test_a_teacher_in_half_precision_teaches_the_same_but_for_rounding(name):
    learner, teacher = make_pair()
    if name == "relations":
        learner = TransformerLearner(learner.student, teacher, relation_loss, matching=Matching(attention_loss=name))
    learner.eval()
    batch, here = make_batch(make_mask()), Processes(torch.device("cpu"), dtype=torch.bfloat16)
    expected = learner(batch)
    teacher.to(torch.bfloat16)
    with here.autocast():
        found = learner(batch)
    assert found.keys() == expected.keys() and found != expected
    for loss in expected:
        assert found[loss].dtype == torch.float32
        assert found[loss].item() == pytest.approx(expected[loss].item(), rel=0.03)
    sum(found.values()).backward()
    assert learner.student.bert.encoder.layer[0].output.dense.weight.grad.isfinite().all()


def test_only_a_gpu_keeps_a_teacher_in_half_precision():
    _, teacher = make_pair()
    assert Processes(torch.device("cpu"), dtype=torch.bfloat16).narrow(teacher) is teacher
    assert {each.dtype for each in teacher.parameters()} == {torch.float32}
