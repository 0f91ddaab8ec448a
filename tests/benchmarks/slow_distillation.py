"""The reference's way of distilling, re-stated plainly: every batch padded to the maximum, the scores of all layers of
both models, the teacher in training mode and anew in every epoch (in general distillation with its gradients' graph),
GELU by its formula, PyTorch's dropout, an optimizer that goes through the weights one by one.

Called by distillation.py, a process for each measurement; augmentation.py slows its slow way down likewise.
"""

import math
import time

import torch
import torch.nn.functional as F

from transformer import modeling, processes


def slow_down():
    """In a process of the reference's way, before it makes models: what the suite does for all that runs on it."""
    modeling.ACTIVATIONS["gelu"] = lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
    modeling.dropout = F.dropout
    processes.keep_freed_memory = lambda: None


class SlowBertAdam:
    """BertAdam, weight by weight, with a new tensor for every intermediate result."""

    def __init__(self, named_parameters, rate, decay=1e-4):
        self.groups = [
            (parameter, 0.0 if name.endswith(("bias", "LayerNorm.weight")) else decay)
            for name, parameter in named_parameters
        ]
        self.rate, self.moments = rate, {}

    def step(self):
        for parameter, decay in self.groups:
            if parameter.grad is None:
                continue
            if parameter not in self.moments:
                self.moments[parameter] = (torch.zeros_like(parameter), torch.zeros_like(parameter))
            first, second = self.moments[parameter]
            torch.nn.utils.clip_grad_norm_([parameter], 1.0)
            first.mul_(0.9).add_(parameter.grad, alpha=0.1)
            second.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            update = first / (second.sqrt() + 1e-6)
            if decay:
                update = update + decay * parameter.data
            parameter.data.add_(-(self.rate * update))

    def zero_grad(self):
        for parameter, _ in self.groups:
            if parameter.grad is not None:
                parameter.grad.detach_()
                parameter.grad.zero_()


def general_loss(student, teacher, batch):
    """The reference's attention and hidden loss of a batch; what the teacher computed is detached, but was recorded."""
    return transformer_loss(student, teacher, batch, recorded=True)


def transformer_loss(student, teacher, batch, recorded=False):
    """The reference's attention and hidden loss of a batch."""
    inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    output = student.bert(*inputs)
    with torch.set_grad_enabled(recorded):
        wanted = teacher.bert(*inputs)
    every = len(wanted.attention_scores) // len(output.attention_scores)
    loss = 0.0
    for index, scores in enumerate(output.attention_scores):
        target = wanted.attention_scores[(index + 1) * every - 1]
        scores = torch.where(scores <= -1e2, torch.zeros_like(scores), scores)
        target = torch.where(target <= -1e2, torch.zeros_like(target), target).detach()
        loss = loss + F.mse_loss(scores, target)
    for index, hidden in enumerate(student.project(output.hidden_states)):
        loss = loss + F.mse_loss(hidden, wanted.hidden_states[index * every].detach())
    return loss


def prediction_loss(student, teacher, batch):
    """The reference's soft cross-entropy of a batch."""
    inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    logits, _ = student(*inputs, score_layers=None)
    with torch.no_grad():
        wanted, _ = teacher(*inputs, score_layers=None)
    return (-F.softmax(wanted, dim=-1) * F.log_softmax(logits, dim=-1)).mean()


def examples_per_second(loss_of, student, teacher, batches):
    """Train on all batches; the first one is not counted."""
    student.train()
    teacher.train()  # as it is left there
    optimizer = SlowBertAdam(student.named_parameters(), 5e-5)
    started, examples = None, 0
    for number, batch in enumerate(batches):
        loss_of(student, teacher, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == 0:
            started = time.monotonic()
        else:
            examples += len(batch["input_ids"])
    return examples / (time.monotonic() - started)
