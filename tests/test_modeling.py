"""Models against Hugging Face's, and every way in and out of a model folder."""

import io
import json
import logging
import math
import pickle
import zipfile

import pytest
import torch
from tiny import VOCABULARY, make_tokenizer

import transformer
from transformer.checkpoint import (
    CONFIG_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    check_vocabulary,
    describe,
    label_names,
    load_state_dict,
    stored_outputs,
    weights_file,
    weights_files,
)
from transformer.file_utils import UserError
from transformer.modeling import (
    ACTIVATIONS,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Dropout,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 17,
    "max_position_embeddings": 11,
    "type_vocab_size": 2,
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
TIED = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
both_precisions = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])


def make_model(model_class, **overrides):
    """One of our models in eval mode, every weight of it random, biases and LayerNorms too."""
    generator = torch.Generator().manual_seed(5)
    model = model_class(BertConfig(**{**SIZES, **overrides}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if name.endswith("LayerNorm.weight") else 0.3 * noise)
    return model.eval()


def make_peer(class_name, model, **overrides):
    """Hugging Face's model of that class with the weights of `model`."""
    config = transformers.BertConfig(**{**SIZES, **overrides}, attn_implementation="eager")
    peer = getattr(transformers, class_name)(config)
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= TIED
    assert all(key.startswith("bert.pooler.") for key in unexpected)
    return peer.eval().to(next(model.parameters()).dtype)


def make_inputs():
    """Five sequences of at most seven tokens, two segments each; keyword arguments of both models."""
    generator = torch.Generator().manual_seed(6)
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 1, 6])[:, None]).long()
    ids = torch.randint(1, SIZES["vocab_size"], (5, 7), generator=generator) * mask
    return {"input_ids": ids, "token_type_ids": (torch.arange(7) >= 2).long() * mask, "attention_mask": mask}


def assert_close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_same_weights(model, other):
    state, wanted = model.state_dict(), other.state_dict()
    assert state.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)


def save_state(folder, state, **config):
    """A model folder from a plain state dict and config values."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps({**SIZES, **config}), encoding="utf-8")
    return folder


# --- the same numbers as Hugging Face


@both_precisions
@pytest.mark.parametrize("masked", [True, False], ids=["padded", "unpadded"])
def test_the_encoder_equals_hugging_faces_on_every_output(dtype, masked):
    ours = make_model(BertModel).to(dtype)
    peer = make_peer("BertModel", ours)
    inputs = make_inputs()
    if not masked:
        del inputs["attention_mask"]
    with torch.no_grad():
        output = ours(**inputs)
        expected = peer(**inputs, output_hidden_states=True, output_attentions=True)
    tolerance = TOLERANCES[dtype]
    assert len(output.hidden_states) == len(expected.hidden_states) == 4
    for hidden, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_close(hidden, wanted, tolerance)
    assert_close(output.pooled, expected.pooler_output, tolerance)
    assert len(output.attention_scores) == len(expected.attentions) == 3
    for scores, probs in zip(output.attention_scores, expected.attentions, strict=True):
        assert scores.shape == (5, 3, 7, 7)
        if masked:
            scores = scores.masked_fill(inputs["attention_mask"][:, None, None, :] == 0, -torch.inf)
        assert_close(scores.softmax(dim=-1), probs, tolerance)


@both_precisions
def test_the_masked_lm_equals_hugging_faces(dtype):
    ours = make_model(BertForMaskedLM).to(dtype)
    with torch.no_grad():
        scores, expected = ours(**make_inputs()), make_peer("BertForMaskedLM", ours)(**make_inputs()).logits
    assert scores.shape == (5, 7, 31)
    assert_close(scores, expected, TOLERANCES[dtype])


@both_precisions
def test_the_classifier_equals_hugging_faces(dtype):
    ours = make_model(TinyBertForSequenceClassification, num_labels=3).to(dtype)
    peer = make_peer("BertForSequenceClassification", ours, num_labels=3)
    with torch.no_grad():
        logits, _ = ours(**make_inputs())
        assert_close(logits, peer(**make_inputs()).logits, TOLERANCES[dtype])
    assert logits.shape == (5, 3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_equals_hugging_faces_of_that_name(name):
    ours = make_model(BertForMaskedLM, hidden_act=name).double()
    with torch.no_grad():
        scores = ours(**make_inputs())
        assert_close(scores, make_peer("BertForMaskedLM", ours, hidden_act=name)(**make_inputs()).logits, 1e-10)
        other = make_model(BertForMaskedLM, hidden_act="relu" if name != "relu" else "gelu").double()
        assert (scores - other(**make_inputs())).abs().max() > 1e-3


def test_token_types_default_to_the_first_segment_and_the_mask_to_no_padding():
    model, inputs = make_model(BertModel), make_inputs()
    ids = inputs["input_ids"]
    with torch.no_grad():
        bare, full = model(ids), model(ids, torch.zeros_like(ids), torch.ones_like(ids))
        typed = model(ids, inputs["token_type_ids"])
    assert_close(bare.pooled, full.pooled, 1e-6)
    assert (bare.pooled - typed.pooled).abs().max() > 1e-2


def test_what_stands_behind_the_padding_changes_nothing():
    model, inputs = make_model(BertModel).double(), make_inputs()
    other = {**inputs, "input_ids": inputs["input_ids"] + 9 * (inputs["attention_mask"] == 0)}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        output, changed = model(**inputs), model(**other)
        alone = model(inputs["input_ids"][1:2, :3], inputs["token_type_ids"][1:2, :3])
    assert_close(output.hidden_states[-1][real], changed.hidden_states[-1][real], 1e-12)
    assert_close(output.hidden_states[-1][1:2, :3], alone.hidden_states[-1], 1e-12)


# --- what is asked for


@pytest.mark.parametrize("layers", [(), (1,), {0, 2}, [0, 1, 2]])
def test_layers_not_asked_for_give_no_scores_and_the_same_hidden_states(layers):
    model = make_model(BertModel)
    with torch.no_grad():
        everything, some = model(**make_inputs()), model(**make_inputs(), score_layers=layers)
    for index, (scores, wanted) in enumerate(zip(some.attention_scores, everything.attention_scores, strict=True)):
        if index in layers:
            assert_close(scores, wanted, 1e-5)
        else:
            assert scores is None
    for hidden, wanted in zip(some.hidden_states, everything.hidden_states, strict=True):
        assert_close(hidden, wanted, 1e-5)
    assert_close(some.pooled, everything.pooled, 1e-5)


@pytest.mark.parametrize("layers", [(), (1,), {0, 2}])
def test_projections_come_from_the_layers_asked_for_and_are_what_the_scores_are_made_of(layers):
    model = make_model(BertModel)
    with torch.no_grad():
        output = model(**make_inputs(), projection_layers=layers)
        fused = model(**make_inputs(), score_layers=(), projection_layers=layers)
    assert [index for index, wanted in enumerate(output.projections) if wanted is not None] == sorted(layers)
    assert fused.attention_scores == [None] * 3
    for index in layers:
        query, key, value = output.projections[index]
        assert query.shape == key.shape == value.shape == (5, 7, 12)
        query, key = (projected.unflatten(2, (3, 4)).transpose(1, 2) for projected in (query, key))
        assert_close(query @ key.transpose(2, 3) / 2, output.attention_scores[index], 1e-5)
        for one, other in zip(fused.projections[index], output.projections[index], strict=True):
            assert_close(one, other, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(probability, dtype):
    values = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    dropped = Dropout(probability)(values)
    assert dropped.dtype == dtype and dropped.shape == values.shape
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=0.002)
    kept = dropped.detach().unique()
    assert len(kept) == 2 and kept[1].item() == pytest.approx(1 / (1 - probability), rel=0.01)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped)  # of ones, the gradient is what each was multiplied by
    torch.manual_seed(3)
    assert torch.equal(Dropout(probability)(values), dropped)
    for axis in (0, 1):  # no row or column has more zeros than chance
        assert (dropped == 0).float().mean(axis).std().item() < 1.2 * math.sqrt(probability * (1 - probability) / 999)


def test_dropout_of_nothing_of_all_and_in_evaluation():
    values = torch.randn(3, 5, requires_grad=True)
    assert torch.equal(Dropout(0.0)(values), values) and torch.equal(Dropout(0.4).eval()(values), values)
    assert torch.equal(Dropout(1.0)(values), torch.zeros(3, 5))
    assert Dropout(0.4)(values[:0]).shape == (0, 5)
    assert Dropout(1 - 1e-6)(torch.ones(1 << 20)).count_nonzero() < 64


@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_layer_for_the_first_position_alone_is_that_of_all(layers):
    model = make_model(BertModel, num_hidden_layers=layers).double()
    inputs = make_inputs()
    whole, first = model(**inputs), model(**inputs, first_only=True)
    assert first.hidden_states[-1].shape == (5, 1, 12)
    assert_close(first.hidden_states[-1], whole.hidden_states[-1][:, :1], 1e-12)
    assert_close(first.pooled, whole.pooled, 1e-12)
    for one, other in zip(first.hidden_states[:-1], whole.hidden_states[:-1], strict=True):
        assert torch.equal(one, other)


def test_attention_drops_the_same_share_with_scores_and_without():
    config = BertConfig(**{**SIZES, "attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.0})
    attention = make_model(BertModel).encoder.layer[0].attention.self
    attention.dropout_prob = config.attention_probs_dropout_prob
    with torch.no_grad():
        attention.value.weight.zero_()
        attention.value.bias.fill_(1.0)  # the context is then the sum of the kept probabilities
    hidden = torch.randn(7, 1, 12).expand(7, 501, 12)
    for need_scores in (True, False):
        context = attention.train()(hidden, None, need_scores)[0]
        assert context.mean().item() == pytest.approx(1.0, abs=0.02)
        assert context.std().item() > 0.02
        assert_close(attention.eval()(hidden, None, need_scores)[0], torch.ones_like(hidden), 1e-5)


def test_the_classifier_gives_scores_only_when_asked():
    model = make_model(TinyBertForSequenceClassification)
    with torch.no_grad():
        logits, output = model(**make_inputs())
        logits_all, output_all = model(**make_inputs(), score_layers=None)
    assert output.attention_scores == [None] * 3
    assert all(scores is not None for scores in output_all.attention_scores)
    assert_close(logits, logits_all, 1e-5)


@pytest.mark.parametrize("pooled_relu", [True, False])
def test_the_relu_between_pooler_and_classifier_is_a_matter_of_config(pooled_relu):
    model = make_model(TinyBertForSequenceClassification, pooled_relu=pooled_relu)
    with torch.no_grad():
        logits, output = model(**make_inputs())
        pooled = output.pooled.clamp(min=0) if pooled_relu else output.pooled
        assert (output.pooled < 0).any()
        assert_close(logits, pooled @ model.classifier.weight.T + model.classifier.bias, 1e-6)


def test_the_padding_embedding_learns_nothing():
    model = make_model(BertModel).train()
    model(**make_inputs()).hidden_states[-1].square().sum().backward()
    gradient = model.embeddings.word_embeddings.weight.grad
    assert gradient[0].abs().sum() == 0
    assert gradient[make_inputs()["input_ids"][0]].abs().sum(dim=1).min() > 0


# --- the projection


def test_one_projection_serves_all_hidden_states():
    model = make_model(TinyBertForPreTraining, fit_size=19)
    hidden_states = list(torch.randn(4, 5, 7, 12))
    projected = model.project(hidden_states)
    assert [value.shape for value in projected] == [(5, 7, 19)] * 4
    for hidden, value in zip(hidden_states, projected, strict=True):
        assert_close(value, hidden @ model.fit_dense.weight.T + model.fit_dense.bias, 1e-5)


def test_with_fit_per_layer_each_hidden_state_has_its_own_projection():
    model = make_model(TinyBertForSequenceClassification, fit_size=19, fit_per_layer=True)
    hidden_states = list(torch.randn(4, 5, 7, 12))
    for index, value in enumerate(model.project(hidden_states)):
        fit = model.fit_denses[index]
        assert_close(value, hidden_states[index] @ fit.weight.T + fit.bias, 1e-5)
    assert not hasattr(model, "fit_dense")


def test_the_projection_is_not_counted_as_part_of_the_model():
    plain, fitted = make_model(TinyBertForPreTraining), make_model(TinyBertForPreTraining, fit_size=19)
    per_layer = make_model(TinyBertForPreTraining, fit_size=19, fit_per_layer=True)
    assert plain.num_parameters() == fitted.num_parameters() == per_layer.num_parameters()
    counts = [sum(value.numel() for value in model.parameters()) for model in (plain, fitted, per_layer)]
    assert counts == [plain.num_parameters() + extra for extra in (0, 19 * 13, 4 * 19 * 13)]
    peer = transformers.BertForPreTraining(transformers.BertConfig(**SIZES))
    assert plain.num_parameters() == peer.num_parameters()
    assert "3 layers, width 12, 3 heads" in describe(plain)


# --- out: our folders in Hugging Face


def load_in_hugging_face(auto_class, folder):
    """The model, and which keys it missed or found too many."""
    model, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    assert not info["mismatched_keys"]
    return model.eval(), set(info["missing_keys"]), set(info["unexpected_keys"])


def test_a_saved_masked_lm_loads_in_hugging_face(tmp_path):
    ours = make_model(BertForMaskedLM)
    ours.save_pretrained(tmp_path)
    peer, missing, unexpected = load_in_hugging_face("AutoModelForMaskedLM", tmp_path)
    assert type(peer).__name__ == "BertForMaskedLM"
    assert missing <= TIED and all("pooler" in key for key in unexpected)
    with torch.no_grad():
        assert_close(ours(**make_inputs()), peer(**make_inputs()).logits, 1e-5)


def test_a_saved_general_student_loads_in_hugging_face_with_heads_and_without(tmp_path):
    ours = make_model(TinyBertForPreTraining, fit_size=19)
    ours.save_pretrained(tmp_path)
    with torch.no_grad():
        expected, output = ours(**make_inputs()), ours.bert(**make_inputs())
        for auto_class in ("AutoModelForMaskedLM", "AutoModelForPreTraining"):
            peer, missing, _ = load_in_hugging_face(auto_class, tmp_path)
            assert missing <= TIED
            scores = peer(**make_inputs())
            assert_close(expected, getattr(scores, "prediction_logits", getattr(scores, "logits", None)), 1e-5)
        peer, missing, unexpected = load_in_hugging_face("AutoModel", tmp_path)
        assert not missing and all(key.startswith(("cls.", "fit_dense.")) for key in unexpected)
        assert_close(output.pooled, peer(**make_inputs()).pooler_output, 1e-5)
        assert_close(output.hidden_states[-1], peer(**make_inputs()).last_hidden_state, 1e-5)


@pytest.mark.parametrize("labels", [{0: "contradiction", 1: "entailment", 2: "neutral"}, {0: "score"}])
def test_a_saved_classifier_loads_in_hugging_face_with_its_label_names(tmp_path, labels):
    ours = make_model(TinyBertForSequenceClassification, id2label=labels, fit_size=19)
    ours.save_pretrained(tmp_path)
    peer, missing, unexpected = load_in_hugging_face("AutoModelForSequenceClassification", tmp_path)
    assert not missing and unexpected == {"fit_dense.weight", "fit_dense.bias"}
    assert peer.config.id2label == labels and peer.num_labels == len(labels)
    assert peer.dtype == torch.float32
    with torch.no_grad():
        assert_close(ours(**make_inputs())[0], peer(**make_inputs()).logits, 1e-5)


@pytest.mark.parametrize("overrides", [{}, {"fit_size": 19}, {"fit_size": 19, "fit_per_layer": True}])
@pytest.mark.parametrize("model_class", [BertForMaskedLM, TinyBertForPreTraining, TinyBertForSequenceClassification])
def test_what_is_saved_comes_back(tmp_path, model_class, overrides):
    model = make_model(model_class, **overrides, pooled_relu=True, hidden_dropout_prob=0.25, note="kept")
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    assert_same_weights(again, model)
    for key in (*SIZES, "fit_size", "fit_per_layer", "hidden_dropout_prob", "note"):
        assert getattr(again.config, key) == getattr(model.config, key), key
    # Only a classifier's folder says whether the ReLU is there.
    assert again.config.pooled_relu == (model_class is TinyBertForSequenceClassification)
    assert ("pooled_relu" in json.loads((tmp_path / CONFIG_NAME).read_text())) == again.config.pooled_relu
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}


# --- in: other people's folders


@pytest.mark.parametrize(
    "class_name, model_class",
    [
        ("BertForMaskedLM", BertForMaskedLM),
        ("BertForPreTraining", TinyBertForPreTraining),
        ("BertForSequenceClassification", TinyBertForSequenceClassification),
    ],
)
def test_a_folder_saved_by_hugging_face_loads_here(tmp_path, class_name, model_class):
    torch.manual_seed(9)
    config = transformers.BertConfig(**SIZES, num_labels=3, initializer_range=0.3)
    peer = getattr(transformers, class_name)(config).eval()
    peer.save_pretrained(tmp_path)
    assert weights_file(tmp_path).name == SAFE_WEIGHTS_NAME
    ours = model_class.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output, expected = ours(**make_inputs()), peer(**make_inputs())
    logits = output[0] if isinstance(output, tuple) else output
    assert_close(logits, expected.prediction_logits if "PreTraining" in class_name else expected.logits, 1e-5)


def test_an_encoder_saved_by_hugging_face_without_heads_loads_under_ours(tmp_path, caplog):
    torch.manual_seed(9)
    peer = transformers.BertModel(transformers.BertConfig(**SIZES, initializer_range=0.3)).eval()
    peer.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        ours = TinyBertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(ours.bert(**make_inputs()).pooled, peer(**make_inputs()).pooler_output, 1e-5)
    assert "not in the checkpoint, drawn at random: classifier.weight, classifier.bias" in caplog.text


@pytest.mark.parametrize("gone", ["bert.encoder.layer.1.", "bert.embeddings.word_embeddings"])
def test_a_checkpoint_that_lacks_a_part_of_the_encoder_is_refused(tmp_path, gone):
    state = make_model(TinyBertForPreTraining).state_dict()
    folder = save_state(tmp_path, {key: value for key, value in state.items() if not key.startswith(gone)})
    with pytest.raises(UserError, match=f"the weights lack {gone}.*, which config.json asks for"):
        TinyBertForPreTraining.from_pretrained(folder)


def test_old_key_names_load(tmp_path, caplog):
    model = make_model(TinyBertForPreTraining)
    renamed = {}
    for key, value in model.state_dict().items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[f"module.{key}"] = value
    renamed["module.bert.embeddings.position_ids"] = torch.arange(11)[None]
    with caplog.at_level(logging.INFO):
        again = TinyBertForPreTraining.from_pretrained(save_state(tmp_path, renamed))
    assert_same_weights(again, model)
    assert not caplog.records  # nothing missing, nothing left over


def test_keys_without_the_bert_prefix_load(tmp_path):
    model = make_model(TinyBertForPreTraining)
    state = {key.removeprefix("bert."): value for key, value in model.state_dict().items()}
    assert_same_weights(TinyBertForPreTraining.from_pretrained(save_state(tmp_path, state)), model)


@pytest.mark.parametrize("key", ["pre_trained", "training"])
def test_huaweis_first_release_loads_with_its_projection_and_its_relu(tmp_path, key):
    model = make_model(TinyBertForSequenceClassification, fit_size=19)
    folder = save_state(tmp_path, model.state_dict(), **{key: ""})
    again = TinyBertForSequenceClassification.from_pretrained(folder)
    assert_same_weights(again, model)
    assert again.config.pooled_relu and again.config.fit_size == 19
    assert not TinyBertForSequenceClassification.from_pretrained(folder, pooled_relu=False).config.pooled_relu


def test_huaweis_second_release_loads_with_a_projection_for_each_layer(tmp_path):
    model = make_model(TinyBertForPreTraining, fit_size=19, fit_per_layer=True)
    again = TinyBertForPreTraining.from_pretrained(save_state(tmp_path, model.state_dict(), training=""))
    assert_same_weights(again, model)
    assert again.config.fit_per_layer and again.config.fit_size == 19


def test_a_plain_checkpoint_has_no_relu_and_no_projection(tmp_path):
    state = make_model(TinyBertForSequenceClassification).state_dict()
    model = TinyBertForSequenceClassification.from_pretrained(save_state(tmp_path, state))
    assert not model.config.pooled_relu and model.config.fit_size is None and not hasattr(model, "fit_dense")


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_projection_is_kept_for_a_teacher_of_its_width_and_drawn_anew_for_another(tmp_path, caplog, per_layer):
    model = make_model(TinyBertForPreTraining, fit_size=19, fit_per_layer=per_layer)
    model.save_pretrained(tmp_path)
    assert_same_weights(TinyBertForPreTraining.from_pretrained(tmp_path, fit_size=19), model)
    assert not caplog.records
    other = TinyBertForPreTraining.from_pretrained(tmp_path, fit_size=23)
    assert [value.shape for value in other.project(list(torch.randn(4, 5, 7, 12)))] == [(5, 7, 23)] * 4
    assert "(19, 12)" in caplog.text and "23" in caplog.text and "drawn anew" in caplog.text
    assert_same_weights(other.bert, model.bert)


def test_a_checkpoint_without_projection_gets_one_of_the_teachers_width(tmp_path):
    make_model(TinyBertForPreTraining).save_pretrained(tmp_path)
    model = TinyBertForPreTraining.from_pretrained(tmp_path, fit_size=23)
    assert model.fit_dense.weight.shape == (23, 12)


def test_a_projection_is_left_out_where_none_is_wanted(tmp_path):
    make_model(TinyBertForPreTraining, fit_size=19).save_pretrained(tmp_path)
    assert not hasattr(TinyBertForPreTraining.from_pretrained(tmp_path, fit_size=None), "fit_dense")


def test_a_fresh_classifier_is_drawn_and_the_rest_is_read(tmp_path):
    model = make_model(TinyBertForSequenceClassification, num_labels=3)
    model.save_pretrained(tmp_path)
    labels = {0: "no", 1: "yes"}
    again = TinyBertForSequenceClassification.from_pretrained(tmp_path, ("classifier",), id2label=labels)
    assert again.classifier.weight.shape == (2, 12)
    assert_same_weights(again.bert, model.bert)


def test_the_weights_tell_the_number_of_classes_where_the_config_does_not(tmp_path):
    folder = save_state(tmp_path, make_model(TinyBertForSequenceClassification, num_labels=5).state_dict())
    assert TinyBertForSequenceClassification.from_pretrained(folder).config.num_labels == 5
    assert stored_outputs(folder, "classifier") == 5
    masked_lm = save_state(tmp_path / "lm", make_model(BertForMaskedLM).state_dict())
    assert stored_outputs(masked_lm, "classifier") == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load_as_float32(tmp_path, dtype):
    model = make_model(TinyBertForPreTraining).to(dtype)
    again = TinyBertForPreTraining.from_pretrained(save_state(tmp_path, model.state_dict(), dtype="float16"))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert_same_weights(again, model.float())


def test_our_weights_are_preferred_to_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    ours = make_model(TinyBertForSequenceClassification)
    peer = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    peer.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    assert weights_file(tmp_path).name == WEIGHTS_NAME
    assert_same_weights(TinyBertForSequenceClassification.from_pretrained(tmp_path), ours)


def save_shards(folder, state):
    """Write a model's weights as two shards and the index that Hugging Face writes beside them."""
    (folder / CONFIG_NAME).write_text(json.dumps(SIZES), encoding="utf-8")
    keys = {key: f"shard-{index % 2}.bin" for index, key in enumerate(state)}
    for shard in sorted(set(keys.values())):
        torch.save({key: value.clone() for key, value in state.items() if keys[key] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": keys}
    (folder / f"{WEIGHTS_NAME}.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_shards_are_one_checkpoint(tmp_path):
    model = make_model(TinyBertForSequenceClassification)
    save_shards(tmp_path, model.state_dict())
    assert weights_file(tmp_path).name == f"{WEIGHTS_NAME}.index.json"
    assert [path.name for path in weights_files(tmp_path)] == ["shard-0.bin", "shard-1.bin"]
    assert_same_weights(TinyBertForSequenceClassification.from_pretrained(tmp_path), model)
    assert stored_outputs(tmp_path, "classifier") == 2
    assert_same_weights(transformer.TinyBertForSequenceClassification.from_pretrained(tmp_path, 2).bert, model.bert)
    # A file of all weights beside them comes first.
    torch.save({"classifier.weight": torch.ones(5, 12)}, tmp_path / WEIGHTS_NAME)
    assert stored_outputs(tmp_path, "classifier") == 5


def test_shards_saved_by_hugging_face_load_here(tmp_path):
    torch.manual_seed(9)
    peer = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, initializer_range=0.3)).eval()
    peer.save_pretrained(tmp_path, max_shard_size="5KB")
    assert weights_file(tmp_path).name == f"{SAFE_WEIGHTS_NAME}.index.json" and len(weights_files(tmp_path)) > 2
    ours = TinyBertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(ours(**make_inputs())[0], peer(**make_inputs()).logits, 1e-5)


# --- in: what is refused


def error_of(function, *args, **kwargs):
    """The message of the UserError that a call must raise; it must be one line."""
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_wrong_shape_is_told_with_both_shapes(tmp_path):
    folder = save_state(tmp_path, make_model(TinyBertForPreTraining).state_dict(), intermediate_size=18)
    message = error_of(TinyBertForPreTraining.from_pretrained, folder)
    assert "intermediate.dense.weight" in message and "(17, 12)" in message and "(18, 12)" in message


@pytest.mark.parametrize("layers, told", [(999, "layer.998.inter"), (4, "layer.3.inter")])
def test_a_config_is_held_against_the_weights_before_a_layer_is_built(tmp_path, monkeypatch, layers, told):
    state = make_model(TinyBertForPreTraining).state_dict()
    folder = save_state(tmp_path, state, num_hidden_layers=layers)
    monkeypatch.setattr("transformer.modeling.BertLayer.__init__", None)
    assert f"the weights lack bert.encoder.{told}" in error_of(TinyBertForPreTraining.from_pretrained, folder)


def test_missing_weights_are_told_with_the_command_that_fetches_them(tmp_path):
    folder = tmp_path / "teacher_model"
    folder.mkdir()
    BertConfig(**SIZES).save_pretrained(folder, "BertForPreTraining")
    message = error_of(TinyBertForPreTraining.from_pretrained, folder)
    assert str(folder) in message and "python -m transformer.file_utils teacher" in message
    assert WEIGHTS_NAME in message and SAFE_WEIGHTS_NAME in message


class Trap:
    """An object whose unpickling creates a file: the sign that code was run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_without_running_it(tmp_path, writer):
    folder, mark = save_state(tmp_path, {}), tmp_path / "ran"
    trap = {"weight": torch.ones(3), "trap": Trap(mark)}
    if writer == "pickle":
        (folder / WEIGHTS_NAME).write_bytes(pickle.dumps(trap["trap"], protocol=2))
    else:
        torch.save(trap, folder / WEIGHTS_NAME, _use_new_zipfile_serialization=writer == "torch")
    message = error_of(TinyBertForPreTraining.from_pretrained, folder)
    assert WEIGHTS_NAME in message and "refused" in message
    assert not mark.exists()
    with open(folder / WEIGHTS_NAME, "rb") as file:  # the trap works where nothing guards
        pickle.load(file) if writer == "pickle" else torch.load(file, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(tmp_path, share, zipped):
    folder = save_state(tmp_path, {})
    path = folder / WEIGHTS_NAME
    state = make_model(TinyBertForPreTraining).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert WEIGHTS_NAME in error_of(load_state_dict, folder)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / SAFE_WEIGHTS_NAME
    save_file({"classifier.weight": torch.ones(3, 5)}, path)
    path.write_bytes(path.read_bytes()[:-7])
    assert SAFE_WEIGHTS_NAME in error_of(load_state_dict, tmp_path)


def test_each_shard_is_checked_as_a_file_of_all_weights_is(tmp_path):
    save_shards(tmp_path, {"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])})
    assert "shard-1.bin: b holds NaN" in error_of(load_state_dict, tmp_path)
    torch.save({"trap": Trap(tmp_path / "ran")}, tmp_path / "shard-1.bin")
    assert "shard-1.bin" in error_of(load_state_dict, tmp_path) and not (tmp_path / "ran").exists()
    (tmp_path / "shard-1.bin").unlink()
    told = f"no shard-1.bin there, which {WEIGHTS_NAME}.index.json names"
    assert told in error_of(load_state_dict, tmp_path)


@pytest.mark.parametrize(
    "name", ["../weights.bin", "/weights.bin", "..", "deeper/weights.bin", "weights", 3, ["a.bin"]]
)
def test_an_index_names_files_beside_it_only(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.bin")
    (folder / f"{WEIGHTS_NAME}.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    told = error_of(load_state_dict, folder)
    assert f"{folder}/{WEIGHTS_NAME}.index.json: expected a weight_map" in told


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a.bin"]}'])
def test_an_index_of_another_form_is_told(tmp_path, text):
    (tmp_path / f"{SAFE_WEIGHTS_NAME}.index.json").write_text(text, encoding="utf-8")
    assert f"{SAFE_WEIGHTS_NAME}.index.json" in error_of(load_state_dict, tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(3)], {"weight": 3}, torch.ones(3)])
def test_a_file_of_something_else_than_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / WEIGHTS_NAME)
    assert "expected a dictionary of tensors" in error_of(load_state_dict, tmp_path)


def test_weights_are_written_deterministically(tmp_path):
    model = make_model(TinyBertForPreTraining)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        model.save_pretrained(tmp_path / name)
    first, second = ((tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("one", "two"))
    assert first == second and zipfile.is_zipfile(io.BytesIO(first))


# --- the configuration


@pytest.mark.parametrize(
    "values, words",
    [
        ({"hidden_size": 13}, "hidden_size 13 is not a multiple of num_attention_heads 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "31"}, "vocab_size is '31'"),
        ({"intermediate_size": 2.5}, "intermediate_size is 2.5"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob is 1"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob is '0.1'"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, expected a whole number, 1 to 1,000"),
        ({"to_dict": 1}, "'to_dict' is no key of a configuration"),
        ({"DEFAULTS": {}}, "'DEFAULTS' is no key of a configuration"),
        ({"__class__": "x"}, "'__class__' is no key of a configuration"),
        ({"id2label": {"one": "x"}}, "id2label is {'one': 'x'}, expected a name for each number"),
        ({"pad_token_id": 31}, "pad_token_id is 31, vocab_size is 31"),
        ({"hidden_act": "glue"}, "hidden_act is 'glue', expected one of gelu, gelu_new"),
    ],
)
def test_a_config_value_out_of_range_is_told(tmp_path, values, words):
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**SIZES, **values}), encoding="utf-8")
    message = error_of(BertConfig.from_pretrained, tmp_path)
    assert words in message and str(tmp_path / CONFIG_NAME) in message


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", ["bert", "\n"]])
def test_a_config_of_another_model_type_is_refused(tmp_path, kind):
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**SIZES, "hidden_act": "new", "model_type": kind}))
    told = error_of(BertConfig.from_pretrained, tmp_path)
    assert told.endswith(f"{CONFIG_NAME}: model_type is {kind!r}; this suite reads BERT (model_type 'bert')")


@pytest.mark.parametrize("text", ["[1, 2]", "{", "", "7"])
def test_a_config_that_is_no_json_object_is_told(tmp_path, text):
    (tmp_path / CONFIG_NAME).write_text(text, encoding="utf-8")
    assert str(tmp_path / CONFIG_NAME) in error_of(BertConfig.from_pretrained, tmp_path)


def test_a_missing_config_is_told(tmp_path):
    assert CONFIG_NAME in error_of(BertConfig.from_pretrained, tmp_path)


def test_config_keys_unknown_here_are_kept_and_hugging_face_reads_the_rest(tmp_path):
    config = BertConfig(**SIZES, author="somebody", fit_size=19)
    config.save_pretrained(tmp_path, "BertForPreTraining")
    again = BertConfig.from_pretrained(tmp_path / CONFIG_NAME, hidden_act="relu")
    assert (again.author, again.fit_size, again.hidden_act) == ("somebody", 19, "relu")
    peer = transformers.AutoConfig.from_pretrained(tmp_path)
    assert {key: getattr(peer, key) for key in SIZES} == SIZES


def test_label_names_come_in_the_order_of_the_logits():
    config = BertConfig(id2label={"1": "yes", "0": "no", "2": "maybe"})
    assert label_names(config) == ["no", "yes", "maybe"] and config.num_labels == 3
    assert label_names(BertConfig()) is None
    assert label_names(BertConfig(id2label={0: "LABEL_0", 1: "LABEL_1"})) is None


@pytest.mark.parametrize("surplus, fits", [(-1, False), (0, True), (127, True), (128, False)])
def test_vocabulary_and_config_must_be_of_one_model(surplus, fits):
    config = BertConfig(vocab_size=len(VOCABULARY) + surplus)
    if fits:
        check_vocabulary(config, make_tokenizer(), "folder")
    else:
        message = error_of(check_vocabulary, config, make_tokenizer(), "folder")
        assert str(len(VOCABULARY)) in message and str(config.vocab_size) in message
