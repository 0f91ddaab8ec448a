"""The distillation: which teacher layer teaches which student layer, TinyBERT's losses, and the learners.

Equation numbers are those of arXiv 1909.10351, section 3. Shapes: B batch, L length, D width, H heads, C classes.
Every loss is a mean over the examples of a mean inside each example, so that an example has the same weight in every
batch. The mean inside is over real tokens; as an option it includes the padding, as in the reference.
"""

import contextlib
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from transformer.files import UserError
from transformer.modeling import BertOutput
from transformer.settings import Matching
from transformer.tokenization import BertTokenizer

MATCHING = Matching()
MAX_RELATION_HEADS = 48  # the best number in MiniLMv2 for a teacher of BERT-base's size


def layer_map(student_layers, teacher_layers, name="uniform"):
    """{m: g(m)}: layer m of the student learns from layer g(m) of the teacher (equation 6); 0 is the embedding output.

    Args: name: "uniform" g(m) = m * N / M; "top" the teacher's last M layers, "bottom" its first; "last" only the two
    last layers; or M teacher layers, from 1: "2,5,8,11". Raises UserError for a name that does not fit M and N.
    """
    if student_layers > teacher_layers:
        raise UserError(f"the student has {student_layers} layers, the teacher only {teacher_layers}")
    if name == "last":
        return {0: 0, student_layers: teacher_layers}
    if name == "uniform" and teacher_layers % student_layers:
        raise UserError(
            f"the teacher's {teacher_layers} layers are not a multiple of the student's {student_layers}: change "
            "num_hidden_layers in the student's config.json, or name the teacher's layers with --layer_map"
        )
    layers = range(1, student_layers + 1)
    named = {
        "uniform": [m * teacher_layers // student_layers for m in layers],
        "top": [m + teacher_layers - student_layers for m in layers],
        "bottom": list(layers),
    }
    numbers = named.get(name) or [int(part) if part.strip().isdecimal() else 0 for part in name.split(",")]
    if len(numbers) != student_layers or not all(1 <= number <= teacher_layers for number in numbers):
        raise UserError(
            f"--layer_map {name}: expected uniform, last, top, bottom, or {student_layers} numbers from 1 to "
            f"{teacher_layers}, a teacher layer for each student layer"
        )
    return dict(enumerate([0, *numbers]))


def check_pair(student, teacher, matching=MATCHING):
    """Raise UserError if the student cannot learn from the teacher (two BertConfigs) in this way."""
    layer_map(student.num_hidden_layers, teacher.num_hidden_layers, matching.layer_map)
    if matching.attention_loss == "scores" and student.num_attention_heads != teacher.num_attention_heads:
        raise UserError(
            f"the student has {student.num_attention_heads} attention heads, the teacher has "
            f"{teacher.num_attention_heads}: the attention loss compares them one by one; "
            "change num_attention_heads in the student's config.json, or take --attention_loss relations"
        )


def relation_heads(student, teacher):
    """The largest number of heads, up to MAX_RELATION_HEADS, that divides both widths."""
    common = math.gcd(student.hidden_size, teacher.hidden_size)
    return max(count for count in range(1, MAX_RELATION_HEADS + 1) if common % count == 0)


def check_same_vocabulary(tokenizer, folder):
    """Raise UserError if the student's vocabulary is not the teacher's: the same ids would mean other words to it."""
    if (Path(folder) / "vocab.txt").is_file() and BertTokenizer.from_pretrained(folder).vocab != tokenizer.vocab:
        raise UserError(f"{folder}/vocab.txt: differs from the teacher's vocabulary; both must read the same ids")


class LossWeights(NamedTuple):
    """The weight of each position in the loss. Over real tokens each tensor sums to 1. None = equal weights."""

    tokens: torch.Tensor | None  # (B, L)
    pairs: torch.Tensor | None  # (B, 1, L, L), query by key


def loss_weights(attention_mask, over_padding=False):
    """The weights of tokens and query-key pairs for an attention mask (B, L), None = no padding.

    `over_padding` (--pad_to_max_length): as in the reference, every position of the padded batch counts as a token and
    as a query, and a masked key as an error of 0. A run then reproduces the reference's numbers.
    """
    if attention_mask is None:
        return LossWeights(None, None)
    real = attention_mask.to(torch.float32)  # (B, L)
    batch, length = real.shape
    if over_padding:
        return LossWeights(None, (real / (batch * length * length))[:, None, None, :].expand(-1, 1, length, -1))
    counts = real.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    tokens = real / (counts * batch)
    pairs = (real / (counts * counts * batch))[:, :, None] * real[:, None, :]
    return LossWeights(tokens, pairs[:, None])


def attention_loss(student_scores, teacher_scores, pair_weights=None):
    """L_attn = mean over heads of MSE(A_S, A_T), equation 7, for one layer's scores (B, H, L, L) before softmax."""
    if pair_weights is None:
        return F.mse_loss(student_scores.float(), teacher_scores.float())
    errors = (student_scores.float() - teacher_scores.float()).square().mean(dim=1, keepdim=True)  # (B, 1, L, L)
    return (errors * pair_weights).sum()


def relation_loss(student_projections, teacher_projections, num_heads, attention_mask=None):
    """The loss of MiniLMv2 (arXiv 2012.15828, equations 4 and 5) for one layer, in place of the attention loss.

    Queries, keys and values, (B, L, D) each, are split into `num_heads` heads. For each kind the softmax of the scaled
    products of all pairs of positions is compared by KL divergence. The models may differ in width and number of heads.
    """

    def log_relations(projected):  # (B, L, D) -> (B, A, L, L)
        with torch.autocast(projected.device.type, enabled=False):  # in float32, because float16 overflows
            heads = projected.float().unflatten(2, (num_heads, -1)).transpose(1, 2)
            products = heads @ heads.transpose(-1, -2) / math.sqrt(heads.shape[-1])
            if attention_mask is not None:
                products = products.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(products.dtype).min)
            return F.log_softmax(products, dim=-1)

    token_weights, total = loss_weights(attention_mask).tokens, 0.0
    for student, teacher in zip(student_projections, teacher_projections, strict=True):
        targets = log_relations(teacher)
        divergence = F.kl_div(log_relations(student), targets, reduction="none", log_target=True)
        divergence = divergence.sum(dim=3).mean(dim=1)  # (B, L), for each query
        total = total + (divergence.mean() if token_weights is None else (divergence * token_weights).sum())
    return total


def hidden_loss(projected, teacher_hidden, token_weights=None):
    """L_hidn = MSE(H_S W_h, H_T), equation 8, or for the embedding output L_embd, equation 9; (B, L, D) each."""
    if token_weights is None:
        return F.mse_loss(projected.float(), teacher_hidden.float())
    errors = (projected.float() - teacher_hidden.float()).square().mean(dim=2)  # (B, L)
    return (errors * token_weights).sum()


def prediction_loss(student_logits, teacher_logits, temperature=1.0):
    """L_pred = CE(z_T / t, z_S / t), equation 10, (B, C) each; also averaged over the classes, as in the reference."""
    targets = F.softmax(teacher_logits.float() / temperature, dim=1)
    return -(targets * F.log_softmax(student_logits.float() / temperature, dim=1)).mean()


def transformer_losses(
    student,
    student_output,
    teacher_output,
    mapping,
    weights,
    attention=attention_loss,
    hidden=hidden_loss,
    relations=(),
):
    """L_attn and L_hidn of every mapped layer. Their sum is equation 6 without the prediction layer.

    Args: student: the model, for its projection W_h; student_output, teacher_output: BertOutput; mapping: {m: g(m)} of
    `layer_map`; weights: `loss_weights`; relations: (number of heads, attention mask) where `attention` compares
    queries, keys and values, () where it compares scores. Returns {"att_loss/m": scalar for each mapped layer m,
    "rep_loss/m": likewise, and for the embeddings, m = 0}.
    """
    compared = "projections" if relations else "attention_scores"
    of_student, of_teacher = getattr(student_output, compared), getattr(teacher_output, compared)
    more = relations or (weights.pairs,)
    losses = {f"att_loss/{m}": attention(of_student[m - 1], of_teacher[g - 1], *more) for m, g in mapping.items() if m}
    in_teacher_width = student.project(student_output.hidden_states)
    for m, g in mapping.items():
        losses[f"rep_loss/{m}"] = hidden(in_teacher_width[m], teacher_output.hidden_states[g], weights.tokens)
    return losses


class TransformerLearner(nn.Module):
    """The learner of general distillation and of the intermediate step: the losses of a batch, layer by layer.

    Args: student, teacher: models with a `bert` inside; the student has `project` too; attention: `attention_loss`, or
    `relation_loss` for `Matching(attention_loss="relations")`; hidden: `hidden_loss`, or others of the same arguments;
    matching: which layers teach, and what each kind of loss weighs. Raises UserError where layers or heads do not fit.
    """

    def __init__(self, student, teacher, attention=attention_loss, hidden=hidden_loss, matching=MATCHING):
        super().__init__()
        check_pair(student.config, teacher.config, matching)
        self.student, self.attention, self.hidden, self.matching = student, attention, hidden, matching
        # In a list, so that the teacher is no submodule: train() must not turn its dropout on, and DDP must not manage
        # its weights. The reference left the teacher in training mode, and its dropout blurred every target.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.mapping = layer_map(student.config.num_hidden_layers, teacher.config.num_hidden_layers, matching.layer_map)
        self.teaching = sorted(set(self.mapping.values()))  # the K teacher layers whose hidden states are wanted
        self.attending = sorted({g for m, g in self.mapping.items() if m})  # the M whose attention is
        self.by_relations = attention is relation_loss
        self.num_relation_heads = relation_heads(student.config, teacher.config)

    @property
    def teacher(self):
        """The frozen teacher."""
        return self._teacher[0]

    def wanted(self, layers):
        """Arguments of a model for the scores, or queries, keys and values, of `layers`: the others run faster."""
        compared = "projection_layers" if self.by_relations else "score_layers"
        return {"score_layers": (), compared: {layer - 1 for layer in layers}}

    def run_teacher(self, batch):
        """The teacher's `BertOutput`, as far as the losses want it."""
        # Not inference_mode(): the losses keep the teacher's tensors for the backward pass. A teacher that is wholly in
        # half precision needs no mixed one.
        half = next(self.teacher.parameters()).dtype != torch.float32
        inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
        mixed = torch.autocast(inputs[0].device.type, enabled=False) if half else contextlib.nullcontext()
        with torch.no_grad(), mixed:  # layers above the last one that teaches need not run
            return self.teacher.bert(*inputs, **self.wanted(self.attending), depth=self.teaching[-1])

    def states_of(self, output):
        """What the losses want of the teacher's output, stacked: hidden states (B, K, L, D), and scores
        (B, M, H, L, L) or queries, keys and values (B, M, 3, L, D)."""
        compared = [output.attention_scores[g - 1] for g in self.attending]
        if self.by_relations:
            compared = [torch.stack(output.projections[g - 1], dim=1) for g in self.attending]
        return torch.stack([output.hidden_states[g] for g in self.teaching], dim=1), torch.stack(compared, dim=1)

    def output_of(self, hidden, compared):
        """What `states_of` stacked as a `BertOutput` again, by layer number instead of in lists."""
        compared = [each.unbind(1) if self.by_relations else each for each in compared.unbind(1)]
        compared = dict(zip((g - 1 for g in self.attending), compared, strict=True))
        hidden = dict(zip(self.teaching, hidden.unbind(1), strict=True))
        return BertOutput(hidden, compared, compared, None)  # of scores and projections the losses read one

    def forward(self, batch):
        mask = batch["attention_mask"]
        if "teacher_hidden" in batch:  # computed before, see `teacher_states`
            teacher = self.output_of(batch["teacher_hidden"], batch["teacher_compared"])
        else:
            teacher = self.run_teacher(batch)
        wanted = self.wanted(m for m in self.mapping if m)
        student = self.student.bert(batch["input_ids"], batch["token_type_ids"], mask, **wanted)
        weights = loss_weights(mask, self.matching.pad_to_max_length)
        relations = (self.num_relation_heads, mask) if self.by_relations else ()
        kinds = self.attention, self.hidden, relations
        losses = transformer_losses(self.student, student, teacher, self.mapping, weights, *kinds)
        factors = {"att_loss": self.matching.attention_weight, "rep_loss": self.matching.hidden_weight}
        return {name: value * factors[name.split("/")[0]] for name, value in losses.items()}


def head_outputs(model, batch):
    """A model's outputs for a batch: (B, C), or (P, C) of the batch's P answered tokens end to end."""
    outputs, _ = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    return outputs[tuple(batch["answered"])] if "answered" in batch else outputs


def examples_of(batch):
    """What a loss has to know where an example has several outputs: {"examples": (P,)}, the example of each."""
    return {"examples": batch["answered"][0]} if "answered" in batch else {}


class PredictionLearner(nn.Module):
    """The learner of the prediction step. Args: teacher_outputs (N, C), for each row of the training data, so
    that the teacher is not needed; loss of the student's and the teacher's outputs (B, C)."""

    def __init__(self, student, teacher_outputs, loss=prediction_loss):
        super().__init__()
        self.student, self.teacher_outputs, self.loss = student, teacher_outputs, loss

    def forward(self, batch):
        outputs = head_outputs(self.student, batch)
        return {"cls_loss": self.loss(outputs, self.teacher_outputs[batch["outputs"]], **examples_of(batch))}


class GoldLearner(nn.Module):
    """The learner of fine-tuning and the baseline: a `loss` of the head's outputs (B, C) and the gold labels (B,)."""

    def __init__(self, model, loss):
        super().__init__()
        self.student, self.loss = model, loss

    def forward(self, batch):
        return {"loss": self.loss(head_outputs(self.student, batch), batch["labels"], **examples_of(batch))}
