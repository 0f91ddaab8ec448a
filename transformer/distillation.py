"""What the student learns: which teacher layer teaches which student layer, and TinyBERT's losses, one function each.

Equation numbers are the paper's (arXiv 1909.10351, section 3). Shapes: B batch, L length, D width, H heads, C classes.
Every loss is the mean over the batch's examples of a mean inside each example, so that an example counts the same
whatever it is batched with: over real tokens by default, over the padding too in the reference's way.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from transformer.file_utils import UserError
from transformer.tokenization import BertTokenizer


def layer_map(student_layers, teacher_layers):
    """g(m) for m = 0..M, the uniform mapping of equation 6: g(m) = m * N / M; index 0 is the embedding output.

    Layer m of the student (from 1) learns from layer g(m) of the teacher (from 1). Raises UserError when N is not a
    multiple of M.
    """
    if teacher_layers % student_layers:
        raise UserError(
            f"the teacher's {teacher_layers} layers are not a multiple of the student's {student_layers}: "
            "change num_hidden_layers in the student's config.json"
        )
    return [m * (teacher_layers // student_layers) for m in range(student_layers + 1)]


def check_pair(student, teacher):
    """Refuse a student that cannot learn from this teacher (two BertConfigs). Raises UserError."""
    layer_map(student.num_hidden_layers, teacher.num_hidden_layers)
    if student.num_attention_heads != teacher.num_attention_heads:
        raise UserError(
            f"the student has {student.num_attention_heads} attention heads, the teacher has "
            f"{teacher.num_attention_heads}: the attention loss compares them one by one; "
            "change num_attention_heads in the student's config.json"
        )


def check_same_vocabulary(tokenizer, folder):
    """Refuse a student folder whose vocabulary is not the teacher's: the same ids would mean other words to it."""
    if (Path(folder) / "vocab.txt").is_file() and BertTokenizer.from_pretrained(folder).vocab != tokenizer.vocab:
        raise UserError(f"{folder}/vocab.txt: differs from the teacher's vocabulary; both must read the same ids")


class LossWeights(NamedTuple):
    """What each position weighs in its example's mean; each tensor sums to 1 over the batch. None = all the same."""

    tokens: torch.Tensor | None  # (B, L)
    pairs: torch.Tensor | None  # (B, 1, L, L), query by key


def loss_weights(attention_mask, over_padding=False):
    """Weights of tokens and of query-key pairs from an attention mask (B, L), or None where nothing is padded.

    `over_padding`: the reference's means. There every position of the padded batch counts as a token and as a query,
    and a masked key counts as an error of 0: with it and `--pad_to_max_length` a run repeats the reference's numbers.
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
    """L_attn of equation 7 for one layer: MSE of the scores before the softmax, (B, H, L, L) each."""
    if pair_weights is None:
        return F.mse_loss(student_scores.float(), teacher_scores.float())
    errors = (student_scores.float() - teacher_scores.float()).square().mean(dim=1, keepdim=True)  # (B, 1, L, L)
    return (errors * pair_weights).sum()


def hidden_loss(projected, teacher_hidden, token_weights=None):
    """L_hidn and, at the embedding output, L_embd (equations 8 and 9): MSE of W_h S and T, (B, L, D) each."""
    if token_weights is None:
        return F.mse_loss(projected.float(), teacher_hidden.float())
    errors = (projected.float() - teacher_hidden.float()).square().mean(dim=2)  # (B, L)
    return (errors * token_weights).sum()


def prediction_loss(student_logits, teacher_logits, temperature=1.0):
    """L_pred of equation 10, (B, C) each: soft cross-entropy, averaged over the classes too, as in the reference.

    With one output (regression) it is the MSE to the teacher's score, so that the student learns from the teacher there
    too; the reference used the gold score.
    """
    if student_logits.shape[1] == 1:
        return F.mse_loss(student_logits.float(), teacher_logits.float())
    targets = F.softmax(teacher_logits.float() / temperature, dim=1)
    return -(targets * F.log_softmax(student_logits.float() / temperature, dim=1)).mean()


def transformer_losses(student, student_output, teacher_output, mapping, weights):
    """L_attn and L_hidn over all layers, the sums of equation 6 without the prediction layer.

    Args: student: the model, for its projection; student_output, teacher_output: BertOutput; mapping: `layer_map`;
    weights: `loss_weights`. Returns {"att_loss", "rep_loss"}, scalars.
    """
    att_loss = sum(
        attention_loss(
            student_output.attention_scores[m - 1], teacher_output.attention_scores[mapping[m] - 1], weights.pairs
        )
        for m in range(1, len(mapping))
    )
    projected = student.project(student_output.hidden_states)
    rep_loss = sum(
        hidden_loss(projected[m], teacher_output.hidden_states[mapping[m]], weights.tokens) for m in range(len(mapping))
    )
    return {"att_loss": att_loss, "rep_loss": rep_loss}


class TransformerLearner(nn.Module):
    """The learner of general distillation and of the intermediate step: a batch in, attention and hidden losses out.

    Works on any models with a `bert` inside; the student also has `project`. Raises UserError for a pair whose layers
    or heads do not fit.
    """

    def __init__(self, student, teacher, over_padding=False):
        super().__init__()
        check_pair(student.config, teacher.config)
        self.student, self.over_padding = student, over_padding
        # In a list, so that the teacher is no submodule: train() must not reach its dropout, nor DDP its weights. The
        # reference left the teacher in training mode and its dropout blurred every target.
        self.frozen = [teacher.eval().requires_grad_(False)]
        self.mapping = layer_map(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
        self.teacher_layers = {layer - 1 for layer in self.mapping[1:]}  # from 0: whose scores are used

    def forward(self, batch):
        inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
        with torch.no_grad():
            teacher_output = self.frozen[0].bert(*inputs, score_layers=self.teacher_layers)
        student_output = self.student.bert(*inputs)
        weights = loss_weights(batch["attention_mask"], self.over_padding)
        return transformer_losses(self.student, student_output, teacher_output, self.mapping, weights)


class PredictionLearner(nn.Module):
    """The learner of the prediction step. `teacher_logits` (N, C), by row of the training data: once they are known,
    the teacher itself is not needed."""

    def __init__(self, student, teacher_logits, temperature):
        super().__init__()
        self.student, self.teacher_logits, self.temperature = student, teacher_logits, temperature

    def forward(self, batch):
        logits, _ = self.student(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        return {"cls_loss": prediction_loss(logits, self.teacher_logits[batch["rows"]], self.temperature)}
