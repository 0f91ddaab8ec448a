"""BertAdam and its schedules: Adam with decoupled weight decay, clipping per tensor, and a warm-up of the rate in place
of bias correction (the division of the moments by 1 - beta^t)."""

import itertools
import math

import torch
from torch.optim import Optimizer
from torch.optim.adamw import adamw


class ConstantLR:
    """A factor of the learning rate by step: 1. `warmup`: fraction of the run's `t_total` steps in which those below
    rise from 0, -1 = none; t_total: -1 = always 1. Raises ValueError for another warm-up."""

    def __init__(self, warmup=0.002, t_total=-1):
        if not 0 <= warmup < 1 and warmup != -1:
            raise ValueError(f"warmup is {warmup}, expected from 0 up to 1, or -1")
        self.warmup, self.t_total = max(warmup, 0.0), t_total

    def get_lr(self, step, nowarn=False):
        return self.rate(step / self.t_total) if self.t_total > 0 else 1.0

    def rate(self, progress):
        return 1.0


class WarmupConstantSchedule(ConstantLR):
    """A linear rise during the warm-up, then 1."""

    def rate(self, progress):
        return progress / self.warmup if progress < self.warmup else self.later(progress)

    def later(self, progress):
        return 1.0


class WarmupLinearSchedule(WarmupConstantSchedule):
    """A linear rise during the warm-up, then a linear fall to 0 at the end."""

    def later(self, progress):
        return max((progress - 1.0) / (self.warmup - 1.0), 0.0)


class WarmupCosineSchedule(WarmupConstantSchedule):
    """A linear rise during the warm-up, then half a cosine down to 0 at the end."""

    def later(self, progress):
        return 0.5 * (1.0 + math.cos(math.pi * min((progress - self.warmup) / (1.0 - self.warmup), 1.0)))


SCHEDULES = {None: ConstantLR, "none": ConstantLR, "warmup_constant": WarmupConstantSchedule}
SCHEDULES |= {"warmup_linear": WarmupLinearSchedule, "warmup_cosine": WarmupCosineSchedule}


class BertAdam(Optimizer):
    """The reference's optimizer, applied to all tensors of a group at once; a step clips the gradients in place.

    Args: lr: peak rate; warmup: fraction of the run's `t_total` steps, -1 = none; t_total: -1 = a constant rate;
    schedule: a name in SCHEDULES, or an object whose get_lr(step) is the factor; b1, b2, e: Adam's betas
    and epsilon; max_grad_norm: of each tensor, 0 = no clipping. A group may have its own values, by the names in
    `defaults`. Raises ValueError for a value out of range, TypeError for an unknown name.
    """

    def __init__(
        self,
        params,
        lr,
        warmup=-1,
        t_total=-1,
        schedule="warmup_linear",
        b1=0.9,
        b2=0.999,
        e=1e-6,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ):
        if not hasattr(schedule, "get_lr") and schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r} is not one of {', '.join(filter(None, SCHEDULES))}")
        ConstantLR(warmup)  # checks it
        for name, value, fits, expected in (
            ("lr", lr, lr >= 0, "0 or more"),
            ("b1", b1, 0 <= b1 < 1, "from 0 up to 1"),
            ("b2", b2, 0 <= b2 < 1, "from 0 up to 1"),
            ("e", e, e >= 0, "0 or more"),
        ):
            if not fits:
                raise ValueError(f"{name} is {value}, expected {expected}")
        rates = {"lr": lr, "warmup": warmup, "t_total": t_total or 1, "schedule": schedule}
        update = {"betas": (b1, b2), "eps": e, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, {**rates, **update, "step": 0})

    def add_param_group(self, param_group):
        """As in every optimizer, but a misspelt value is an error: it would leave the default in force."""
        if unknown := set(param_group) - {"params", *self.defaults}:
            known = ", ".join(self.defaults)
            raise TypeError(f"a group of parameters has {', '.join(sorted(unknown))}, expected some of {known}")
        super().add_param_group(param_group)

    def get_lr(self):
        """The rates of the next step, one for each tensor in the order of the groups."""
        return [rate for group in self.param_groups for rate in [self._rate(group)] * len(group["params"])]

    def _rate(self, group):
        schedule = group["schedule"]
        if not hasattr(schedule, "get_lr"):
            schedule = SCHEDULES[schedule](group["warmup"], group["t_total"])
        return group["lr"] * schedule.get_lr(group["step"])

    def advance_to(self, step):
        """Make the next step number `step`, even if some steps before it made no update."""
        for group in self.param_groups:
            group["step"] = step

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. Returns the loss of `closure`, which is called first."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            if params := [param for param in group["params"] if param.grad is not None]:
                self._update(params, group)
            group["step"] += 1
        return loss

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
            # On a CPU most need no pass over their memory; on a GPU looking would wait.
            needed = scales < 1 if scales.device.type == "cpu" else [True] * len(grads)
            if any(needed):
                clipped = list(itertools.compress(grads, needed)), list(itertools.compress(scales.unbind(), needed))
                torch._foreach_mul_(*clipped)
        # AdamW divides the moments by 1 - beta^step. An infinite step makes that 1: no bias correction.
        never = [torch.full((), math.inf, device=params[0].device)] * len(params)  # made on the device, not copied
        beta1, beta2 = group["betas"]
        rates = {"lr": self._rate(group), "beta1": beta1, "beta2": beta2}
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
