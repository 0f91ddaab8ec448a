"""The reference implementation's own numbers: losses of every step and the student's final weights, on tiny models.

`tests/data/golden_distill` was computed with the published code (dropout 0, teacher in eval mode): all padding counts
in the means, the classifier reads ReLU(pooled), lr 1e-2, warm-up 0.1, weight decay 0.01, t_total = number of steps.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from transformer.checkpoint import read_state
from transformer.distillation import layer_map, loss_weights, prediction_loss, transformer_losses
from transformer.modeling import BertConfig, TinyBertForPreTraining, TinyBertForSequenceClassification
from transformer.optimization import BertAdam, decay_groups
from transformer.training import sum_by_kind

FOLDER = Path(__file__).parent / "data" / "golden_distill"


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(FOLDER / "arrays.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}, json.loads(
        (FOLDER / "losses.json").read_text()
    )


def build(model_class, config_name, tensors, prefix, **overrides):
    model = model_class(BertConfig.from_pretrained(FOLDER / config_name, pooled_relu=True, **overrides))
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    state = {
        key if key.startswith(("bert.", "cls.", "classifier.", "fit_dense.")) else f"bert.{key}": value
        for key, value in state.items()
    }
    missing = read_state(model, state, prefix)
    assert not [key for key in missing if key.startswith("bert.")]
    return model


def run_steps(golden, student, teacher, losses_of, schedule, expected):
    """Train as the reference did, comparing each step's losses."""
    tensors, numbers = golden
    steps = len(expected)
    groups = decay_groups(student, numbers["weight_decay"])
    optimizer = BertAdam(groups, numbers["lr"], numbers["warmup"], steps, schedule)
    for step, wanted in enumerate(expected):
        batch = [tensors[name][step] for name in ("input_ids", "token_type_ids", "attention_mask")]
        with torch.no_grad():
            teacher_output = teacher(*batch)
        losses = losses_of(student(*batch), teacher_output, batch[2])
        for name, value in wanted.items():
            assert losses[name].item() == pytest.approx(value, rel=1e-5, abs=1e-5), (step, name)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()


def assert_weights(student, tensors, prefix):
    state = student.state_dict()
    compared = 0
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name in state:
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)
            compared += 1
    assert compared > 30


def test_general_distillation_repeats_the_reference_step_by_step(golden):
    tensors, numbers = golden
    student = build(TinyBertForPreTraining, "student_config.json", tensors, "general/init/", fit_size=48)
    teacher = build(TinyBertForPreTraining, "teacher_config.json", tensors, "teacher/").bert.eval()
    mapping = layer_map(2, 4)

    def losses_of(output, teacher_output, mask):
        weights = loss_weights(mask, over_padding=True)
        return sum_by_kind(transformer_losses(student, output, teacher_output, mapping, weights))

    run_steps(golden, StudentEncoder(student), teacher, losses_of, "warmup_linear", numbers["general"])
    assert_weights(student, tensors, "general/final/")


class StudentEncoder(torch.nn.Module):
    """The pre-training model as general distillation runs it: without its heads."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *batch):
        return self.model.bert(*batch)


@pytest.fixture(scope="module")
def task_students(golden):
    """The student after the intermediate step and after the prediction step, each checked on the way."""
    tensors, numbers = golden
    student = build(TinyBertForSequenceClassification, "student_config.json", tensors, "task/init/", fit_size=48)
    teacher = build(TinyBertForSequenceClassification, "teacher_config.json", tensors, "task_teacher/").eval()
    mapping = layer_map(2, 4)

    def run(model, *batch):
        return model(*batch, score_layers=None)

    def intermediate(output, teacher_output, mask):
        weights = loss_weights(mask, over_padding=True)
        return sum_by_kind(transformer_losses(student, output[1], teacher_output[1], mapping, weights))

    def prediction(output, teacher_output, mask):
        return {"cls_loss": prediction_loss(output[0], teacher_output[0], numbers["temperature"])}

    for model in (student, teacher):
        model.forward = lambda *batch, forward=model.forward: forward(*batch, score_layers=None)
    run_steps(golden, student, teacher, intermediate, "none", numbers["task_intermediate"])
    after_intermediate = {key: value.clone() for key, value in student.state_dict().items()}
    run_steps(golden, student, teacher, prediction, "warmup_linear", numbers["task_prediction"])
    return after_intermediate, student


def test_both_task_steps_repeat_the_reference_step_by_step(golden, task_students):
    tensors, _ = golden
    after_intermediate, student = task_students
    for name, value in after_intermediate.items():
        key = f"task/after_intermediate/{name}"
        if key in tensors:
            torch.testing.assert_close(value, tensors[key], rtol=1e-4, atol=1e-4)
    assert_weights(student, tensors, "task/after_prediction/")


def test_the_distilled_student_gives_the_reference_logits(golden, task_students):
    tensors, _ = golden
    student = task_students[1].eval()
    batch = [tensors[name][0] for name in ("input_ids", "token_type_ids", "attention_mask")]
    with torch.no_grad():
        logits = student(*batch)[0]
    torch.testing.assert_close(logits, tensors["task/final_logits_batch0"], rtol=1e-5, atol=1e-5)
