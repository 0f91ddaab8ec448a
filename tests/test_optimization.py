"""BertAdam against a plain restatement of itself, its schedules, and its parameter groups."""

import copy
import io
import math

import pytest
import torch

from transformer.modeling import BertConfig, TinyBertForPreTraining
from transformer.optimization import SCHEDULES, BertAdam, decay_groups


def make_parameters(*shapes):
    generator = torch.Generator().manual_seed(4)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(parameters, step):
    """Gradients that differ by step and by tensor; some norms are above 1 and some below."""
    generator = torch.Generator().manual_seed(100 + step)
    for index, parameter in enumerate(parameters):
        size = 10.0 ** (index % 3 - 1)
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


class PlainAdam:
    """BertAdam's update, one number at a time as far as that is bearable: double precision, tensor by tensor."""

    def __init__(self, parameters, lr, warmup, t_total, schedule, weight_decay, max_grad_norm):
        self.values = [parameter.detach().double().clone() for parameter in parameters]
        self.moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in self.values]
        self.lr, self.warmup, self.t_total, self.schedule = lr, warmup, t_total, schedule
        self.weight_decay, self.max_grad_norm, self.count = weight_decay, max_grad_norm, 0

    def step(self, gradients):
        progress = self.count / self.t_total
        if self.schedule != "none" and progress < self.warmup:
            factor = progress / self.warmup
        else:
            rest = (progress - self.warmup) / (1 - self.warmup)
            factor = {
                "none": 1,
                "warmup_constant": 1,
                "warmup_linear": 1 - rest,
                "warmup_cosine": (1 + math.cos(math.pi * rest)) / 2,
            }[self.schedule]
        for value, (mean, square), gradient in zip(self.values, self.moments, gradients, strict=True):
            gradient = gradient.double()
            norm = gradient.square().sum().sqrt()
            if self.max_grad_norm and norm > self.max_grad_norm:
                gradient = gradient * self.max_grad_norm / norm
            mean.copy_(0.9 * mean + 0.1 * gradient)
            square.copy_(0.999 * square + 0.001 * gradient * gradient)
            value -= self.lr * factor * (mean / (square.sqrt() + 1e-6) + self.weight_decay * value)
        self.count += 1


def test_three_numbers_converge():
    weights = torch.nn.Parameter(torch.tensor([0.1, -0.2, -0.1]))
    target = torch.tensor([0.4, 0.2, -0.5])
    optimizer = BertAdam([weights], lr=0.1, schedule="warmup_linear", warmup=0.1, t_total=100, weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        (weights - target).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(weights.detach(), target, rtol=0, atol=1e-2)


@pytest.mark.parametrize("schedule", list(filter(None, SCHEDULES)))
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0], ids=["clipped", "unclipped"])
def test_twenty_steps_equal_the_plain_update_in_every_group(schedule, max_grad_norm):
    parameters = make_parameters((3, 5), (7,), (2, 3, 5), (1,), (11, 2))
    settings = [{"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.03, "weight_decay": 0.0}]
    split = [parameters[:3], parameters[3:]]
    plain = [
        PlainAdam(part, warmup=0.25, t_total=20, schedule=schedule, max_grad_norm=max_grad_norm, **values)
        for part, values in zip(split, settings, strict=True)
    ]
    groups = [{"params": part, **values} for part, values in zip(split, settings, strict=True)]
    optimizer = BertAdam(groups, 1.0, 0.25, 20, schedule, max_grad_norm=max_grad_norm)
    for step in range(20):
        set_gradients(parameters, step)
        for part, adam in zip(split, plain, strict=True):
            adam.step([parameter.grad for parameter in part])
        optimizer.step()
    for parameter, value in zip(parameters, [*plain[0].values, *plain[1].values], strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-5)
    assert (parameters[0].detach() - make_parameters((3, 5))[0].detach()).abs().min() > 1e-3


@pytest.mark.parametrize(
    "schedule, halfway_in, at_its_end, halfway_down, at_the_end",
    [
        ("none", 1.0, 1.0, 1.0, 1.0),
        ("warmup_constant", 0.5, 1.0, 1.0, 1.0),
        ("warmup_linear", 0.5, 1.0, 0.5, 0.0),
        ("warmup_cosine", 0.5, 1.0, 0.5, 0.0),
    ],
)
def test_each_schedule_at_its_corners(schedule, halfway_in, at_its_end, halfway_down, at_the_end):
    def rate(progress, warmup):
        return SCHEDULES[schedule](warmup, 1).get_lr(progress)

    assert rate(0.0, 0.2) == (1.0 if schedule == "none" else 0.0)
    assert rate(0.1, 0.2) == pytest.approx(halfway_in)
    assert rate(0.2, 0.2) == pytest.approx(at_its_end)
    assert rate(0.6, 0.2) == pytest.approx(halfway_down)
    assert rate(1.0, 0.2) == pytest.approx(at_the_end)
    assert rate(1.5, 0.2) == pytest.approx(at_the_end)  # never below 0, never up again
    assert rate(0.0, 0.0) == 1.0


def test_the_rate_reported_is_the_one_of_the_next_step():
    [weights] = make_parameters((3,))
    optimizer = BertAdam([weights], lr=2.0, warmup=0.5, t_total=4, weight_decay=0.0)
    rates, moves = [], []
    for step in range(4):
        set_gradients([weights], step)
        before = weights.detach().clone()
        rates += optimizer.get_lr()
        optimizer.step()
        moves.append((weights.detach() - before).abs().max().item())
    assert rates == pytest.approx([0.0, 1.0, 2.0, 1.0])
    assert moves[0] == 0.0 and min(moves[1:]) > 0
    assert optimizer.get_lr() == pytest.approx([0.0])


def test_each_tensor_is_clipped_by_its_own_norm():
    large, small = make_parameters((3,), (2,))
    large.grad, small.grad = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.3, 0.4])
    optimizer = BertAdam([large, small], lr=0.1, max_grad_norm=1.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[large]["next_m"], 0.1 * torch.tensor([0.6, 0.0, 0.8]))
    torch.testing.assert_close(optimizer.state[small]["next_m"], 0.1 * torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(large.grad, torch.tensor([0.6, 0.0, 0.8]))  # in place, as the reference clips


def test_a_tensor_without_gradient_stays_as_it_is():
    used, unused = make_parameters((3,), (2,))
    before = unused.detach().clone()
    optimizer = BertAdam([used, unused], lr=0.1, weight_decay=0.5, schedule="none")
    set_gradients([used], 0)
    optimizer.step()
    assert torch.equal(unused.detach(), before) and unused not in optimizer.state


def test_a_saved_state_continues_to_the_same_bits():
    def run(parameters, optimizer, steps):
        for step in steps:
            set_gradients(parameters, step)
            optimizer.step()

    def make(parameters):
        groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0}]
        return BertAdam(groups, 0.05, 0.3, 13, "warmup_cosine")

    straight = make_parameters((3, 5), (7,))
    run(straight, make(straight), range(13))
    first = make_parameters((3, 5), (7,))
    optimizer = make(first)
    run(first, optimizer, range(5))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = copy.deepcopy(first)
    resumed = make(second)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.get_lr() == optimizer.get_lr()
    # The names that states of earlier versions have.
    names = {"params", "lr", "warmup", "t_total", "schedule", "betas", "eps", "weight_decay", "max_grad_norm", "step"}
    assert set(optimizer.state_dict()["param_groups"][0]) == names
    run(second, resumed, range(5, 13))
    for one, other in zip(straight, second, strict=True):
        assert torch.equal(one, other)


def test_weight_decay_spares_biases_and_layer_norms():
    model = TinyBertForPreTraining(
        BertConfig(
            vocab_size=31,
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=3,
            intermediate_size=17,
            max_position_embeddings=11,
            fit_size=19,
        )
    )
    model.bert.pooler.requires_grad_(False)
    decay, no_decay = decay_groups(model, 0.03)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.03, 0.0)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ({name_of[id(parameter)] for parameter in group["params"]} for group in (decay, no_decay))
    assert not decayed & spared
    assert decayed | spared == {name for name in name_of.values() if "pooler" not in name}
    layer = "bert.encoder.layer.0."
    assert {
        "fit_dense.weight",
        "bert.embeddings.word_embeddings.weight",
        f"{layer}attention.self.query.weight",
        f"{layer}output.dense.weight",
        "cls.seq_relationship.weight",
    } <= decayed
    assert {
        "fit_dense.bias",
        "bert.embeddings.LayerNorm.weight",
        f"{layer}attention.self.query.bias",
        f"{layer}output.LayerNorm.bias",
        "cls.predictions.bias",
    } <= spared
    assert len(decay["params"]) + len(no_decay["params"]) == len(decayed) + len(spared)  # nothing twice


@pytest.mark.parametrize(
    "name, value",
    [("schedule", "linear"), ("lr", -1.0), ("warmup", 1.0), ("warmup", -0.1), ("b1", 1.0), ("b2", -0.5), ("e", -1e-8)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} "):
        BertAdam(make_parameters((3,)), **{"lr": 0.1, name: value})


def test_a_misspelt_setting_is_refused():
    with pytest.raises(TypeError, match="weight_dacay"):
        BertAdam(make_parameters((3,)), 0.1, weight_dacay=0.0)
    with pytest.raises(TypeError, match="weight_dacay"):
        BertAdam([{"params": make_parameters((3,)), "weight_dacay": 0.0}], 0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_a_total_the_rate_is_constant_and_no_model_freezes(schedule):
    [weights] = make_parameters((3,))
    for _ in range(2):
        optimizer = BertAdam([weights], lr=0.1, schedule=schedule)
        for step in range(3):
            before = weights.detach().clone()
            set_gradients([weights], step)
            assert optimizer.get_lr() == [0.1]
            optimizer.step()
            assert (weights.detach() - before).abs().min() > 0


def test_a_step_calls_its_closure_and_returns_its_loss():
    [weights] = make_parameters((3,))
    optimizer, seen = BertAdam([weights], lr=0.1), []

    def closure():
        optimizer.zero_grad()
        loss = weights.square().sum()
        loss.backward()
        seen.append(loss.item())
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses == seen and losses[2] < losses[1] < losses[0]
    assert optimizer.step() is None
