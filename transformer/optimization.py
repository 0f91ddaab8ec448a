"""BertAdam and its schedules: Adam with decoupled weight decay, clipping per tensor, and a warm-up of the rate in place
of bias correction (the division of the moments by 1 - beta^t)."""

import math

import torch
from torch.optim import Optimizer
from torch.optim.adamw import adamw


def constant(progress, warmup):
    return 1.0


def warmup_constant(progress, warmup):
    """A linear rise during the warm-up, then 1."""
    return progress / warmup if progress < warmup else 1.0


def warmup_linear(progress, warmup):
    """A linear rise during the warm-up, then a linear fall to 0 at the end."""
    return progress / warmup if progress < warmup else max((progress - 1.0) / (warmup - 1.0), 0.0)


def warmup_cosine(progress, warmup):
    """A linear rise during the warm-up, then half a cosine down to 0 at the end."""
    rest = min((progress - warmup) / (1.0 - warmup), 1.0)
    return progress / warmup if progress < warmup else 0.5 * (1.0 + math.cos(math.pi * rest))


SCHEDULES = {"none": constant, **{each.__name__: each for each in (warmup_constant, warmup_linear, warmup_cosine)}}


class BertAdam(Optimizer):
    """The reference's optimizer, applied to all tensors of a group at once; a step clips the gradients in place.

    Args: lr: peak rate; warmup: fraction of the run's `t_total` steps; schedule: a name in SCHEDULES; max_grad_norm: of
    each tensor, 0 = no clipping. A group may have its own values, also of `betas` and `eps`.
    """

    def __init__(
        self, params, lr, warmup=0.0, t_total=1, schedule="warmup_linear", weight_decay=0.01, max_grad_norm=1.0
    ):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}")
        if lr < 0 or not 0 <= warmup < 1:
            raise ValueError(f"lr {lr} must not be negative, warmup {warmup} must be from 0 up to 1")
        rates = {"lr": lr, "warmup": warmup, "t_total": max(t_total, 1), "schedule": schedule}
        update = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, {**rates, **update, "step": 0})

    def get_lr(self, group=None):
        """The rate of the next step, for the first group by default."""
        group = group or self.param_groups[0]
        return group["lr"] * SCHEDULES[group["schedule"]](group["step"] / group["t_total"], group["warmup"])

    def advance_to(self, step):
        """Make the next step number `step`, even if some steps before it made no update."""
        for group in self.param_groups:
            group["step"] = step

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            if params := [param for param in group["params"] if param.grad is not None]:
                self._update(params, group)
            group["step"] += 1

    def _update(self, params, group):
        for param in params:
            if not self.state[param]:
                self.state[param] = {"next_m": torch.zeros_like(param), "next_v": torch.zeros_like(param)}
        moments = ([self.state[param][name] for param in params] for name in ("next_m", "next_v"))
        grads = [param.grad for param in params]
        if group["max_grad_norm"] > 0:
            # Each tensor by its own norm, as in the reference, not all by their common norm.
            norms = torch.stack(torch._foreach_norm(grads))
            scales = (group["max_grad_norm"] / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(grads, list(scales.unbind()))
        # AdamW divides the moments by 1 - beta^step. An infinite step makes that 1: no bias correction.
        never = [torch.full((), math.inf, device=params[0].device)] * len(params)  # made on the device, not copied
        beta1, beta2 = group["betas"]
        rates = {"lr": self.get_lr(group), "beta1": beta1, "beta2": beta2}
        rates |= {name: group[name] for name in ("eps", "weight_decay")}
        # Fused: one pass over the memory.
        adamw(params, grads, *moments, [], never, fused=True, amsgrad=False, maximize=False, **rates)


def decay_groups(model, weight_decay):
    """Parameter groups of a model: no weight decay on biases and LayerNorm weights, as in BERT's recipe."""
    decay, no_decay = [], []
    for name, param in model.named_parameters():
        if param.requires_grad:
            (no_decay if name.endswith("bias") or "LayerNorm" in name else decay).append(param)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
