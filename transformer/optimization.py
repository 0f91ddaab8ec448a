"""BertAdam and its schedules: Adam without bias correction, with decoupled weight decay and clipping tensor by tensor.

Bias correction would divide the moments by (1 - beta^t); BERT's recipe warms the rate up instead.
"""

import math

import torch
from torch.optim import Optimizer


def constant(progress, warmup):
    """1 throughout; `warmup` is not used."""
    return 1.0


def warmup_constant(progress, warmup):
    """A linear rise over the warm-up, then 1."""
    return progress / warmup if progress < warmup else 1.0


def warmup_linear(progress, warmup):
    """A linear rise over the warm-up, then a linear fall that reaches 0 at the end."""
    return progress / warmup if progress < warmup else max((progress - 1.0) / (warmup - 1.0), 0.0)


def warmup_cosine(progress, warmup):
    """A linear rise over the warm-up, then half a cosine down to 0 at the end."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min((progress - warmup) / (1.0 - warmup), 1.0)))


SCHEDULES = {
    "none": constant,
    "warmup_constant": warmup_constant,
    "warmup_linear": warmup_linear,
    "warmup_cosine": warmup_cosine,
}


class BertAdam(Optimizer):
    """The reference's optimizer, run on all tensors of a group at once; a step clips the gradients in place.

    Args: params; lr: peak rate; warmup: fraction of `t_total` steps, 0 = none; t_total: steps of the whole run;
    schedule: a name in SCHEDULES; weight_decay: decoupled, applied at the current rate; max_grad_norm: each tensor's
    gradient is scaled down to this norm, 0 = off. `get_lr()` is the rate of the next step.
    """

    def __init__(
        self,
        params,
        lr,
        warmup=0.0,
        t_total=1,
        schedule="warmup_linear",
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}")
        if lr < 0 or not 0 <= warmup < 1:
            raise ValueError(f"lr {lr} must not be negative, warmup {warmup} must be from 0 up to 1")
        super().__init__(
            params,
            {
                "lr": lr,
                "warmup": warmup,
                "t_total": max(t_total, 1),
                "schedule": schedule,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "max_grad_norm": max_grad_norm,
                "step": 0,
            },
        )

    def get_lr(self):
        group = self.param_groups[0]
        return group["lr"] * SCHEDULES[group["schedule"]](group["step"] / group["t_total"], group["warmup"])

    def advance_to(self, step):
        """Let the next step be number `step`, whether or not every one before it made an update."""
        for group in self.param_groups:
            group["step"] = step

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            rate = group["lr"] * SCHEDULES[group["schedule"]](group["step"] / group["t_total"], group["warmup"])
            group["step"] += 1
            if params:
                self._update(params, rate, group)

    def _update(self, params, rate, group):
        for param in params:
            if not self.state[param]:
                self.state[param]["next_m"] = torch.zeros_like(param)
                self.state[param]["next_v"] = torch.zeros_like(param)
        grads = [param.grad for param in params]
        next_m = [self.state[param]["next_m"] for param in params]
        next_v = [self.state[param]["next_v"] for param in params]
        beta1, beta2 = group["betas"]
        if group["max_grad_norm"] > 0:
            # Each tensor by its own norm, as the reference does, not all of them by their common one.
            norms = torch.stack(torch._foreach_norm(grads))
            scales = (group["max_grad_norm"] / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(grads, list(scales.unbind()))
        # PyTorch's AdamW in one pass over the memory. It divides the moments by 1 - beta^step, which is 1 for a step
        # that never comes: no bias correction.
        never = [torch.full((), math.inf, device=params[0].device)] * len(params)  # made there: no wait for a copy
        torch._fused_adamw_(
            params,
            grads,
            next_m,
            next_v,
            [],
            never,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            amsgrad=False,
            maximize=False,
        )


def decay_groups(model, weight_decay):
    """Parameter groups of a model: weight decay on all but biases and LayerNorm weights, which are scales, not maps."""
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    no_decay = [param for name, param in named if name.endswith("bias") or "LayerNorm" in name]
    decay = [param for name, param in named if not (name.endswith("bias") or "LayerNorm" in name)]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
