"""BERT (arXiv 1810.04805) and TinyBERT (arXiv 1909.10351), from leaf to root.

Shapes: B batch, L sequence length, D hidden size, H attention heads, d = D / H, V vocabulary, C classes.
Module names are the checkpoint's keys, which is why `LayerNorm`, `self` and `fit_dense` look the way they do.
"""

import logging
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from transformer.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_state_dict, read_state, save_weights
from transformer.checkpoint import SAFE_WEIGHTS_NAME as SAFE_WEIGHTS_NAME  # these, because older code imports them here
from transformer.checkpoint import check_vocabulary as check_vocabulary
from transformer.checkpoint import describe as describe
from transformer.checkpoint import label_names as label_names
from transformer.checkpoint import rename_key as rename_key
from transformer.checkpoint import weights_file as weights_file
from transformer.configuration import ACTIVATIONS, CLASSIFIER, BertConfig
from transformer.json_file import read_json
from transformer.quantization import quantize


class Dropout(nn.Dropout):
    """As PyTorch's, but three times as fast on a CPU."""

    def forward(self, values):
        return dropout(values, self.p) if self.training else values


def dropout(values, probability):
    """Values of any shape, of which each is 0 with this probability and the others are scaled up. On a CPU 16 random
    bits decide, so the probability is rounded to a 65,536th."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not 0 < probability < 1 or values.device.type != "cpu" or traced:
        return F.dropout(values, probability)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    numbers = words.view(torch.int16)[: values.numel()].view(values.shape)  # from -32,768 on
    kept = numbers >= min(round(probability * (1 << 16)), (1 << 16) - 1) - (1 << 15)
    return values * kept.to(values.dtype).div_(1 - probability)


class BertEmbeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config):
        super().__init__()
        # [PAD] learns nothing, as in the reference.
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids):
        hidden = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)  # (B, L, D)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.dropout(self.LayerNorm(hidden + self.position_embeddings(positions)))


class BertSelfAttention(nn.Module):
    """Scaled dot-product attention in H heads; returns its scores (equation 1 of the paper) on request."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_prob = config.attention_probs_dropout_prob

    def forward(self, hidden, mask_bias, want_scores=False, want_projections=False, asking=None):
        """`mask_bias` (B, 1, 1, L): 0 at real keys, the lowest number at padding, or None; asking (B, Q, D): the hidden
        states whose queries are wanted, None = all, Q = L. Returns the context (B, Q, D), the scores (B, H, Q, L) and
        (query, key, value), (B, Q, D) and twice (B, L, D); the last two None unless wanted."""
        asking = hidden if asking is None else asking
        projections = self.query(asking), self.key(hidden), self.value(hidden)  # (B, Q or L, D); below (B, H, ., d)
        query, key, value = (each.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for each in projections)
        dropout_prob, scores = self.dropout_prob if self.training else 0.0, None
        if want_scores or (dropout_prob and hidden.device.type == "cpu"):  # there the fused kernel has no dropout
            # The scores are returned without the mask: each loss chooses which pairs of positions count.
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, H, Q, L)
            probs = F.softmax(scores if mask_bias is None else scores + mask_bias, dim=-1)
            context = dropout(probs, dropout_prob) @ value  # (B, H, Q, d)
        else:  # the fused kernel never writes scores to memory
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_bias, dropout_p=dropout_prob)
        return (
            context.transpose(1, 2).flatten(2),
            scores if want_scores else None,
            projections if want_projections else None,
        )


class BertResidualOutput(nn.Module):
    """Linear, dropout, residual, LayerNorm: both halves of a layer end like this."""

    def __init__(self, config, input_size):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidualOutput(config, config.hidden_size)

    def forward(self, hidden, mask_bias, want_scores=False, want_projections=False, asking=None):
        asking = hidden if asking is None else asking
        context, scores, projections = self.self(hidden, mask_bias, want_scores, want_projections, asking)
        return self.output(context, asking), scores, projections


class BertIntermediate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden):
        return self.activation(self.dense(hidden))


class BertLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidualOutput(config, config.intermediate_size)

    def forward(self, hidden, mask_bias, want_scores=False, want_projections=False, asking=None):
        attended, scores, projections = self.attention(hidden, mask_bias, want_scores, want_projections, asking)
        return self.output(self.intermediate(attended), attended), scores, projections


class BertEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))


class BertPooler(nn.Module):
    """tanh of a linear map of the first position, [CLS]."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        return torch.tanh(self.dense(hidden[:, 0]))


class BertOutput(NamedTuple):
    # Where only [CLS] was wanted of the last layer, its hidden state, scores and query have 1 in place of a first L.
    hidden_states: list  # 1 + layers tensors (B, L, D), the embedding output first
    attention_scores: list  # (B, H, L, L) for each layer, before mask and softmax; None where not requested
    projections: list  # (query, key, value) for each layer, (B, L, D) each; None where not requested
    pooled: torch.Tensor  # (B, D)


class BertModel(nn.Module):
    """The encoder. All its outputs equal those of Hugging Face's BertModel."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)

    def forward(
        self,
        input_ids,
        token_type_ids=None,
        attention_mask=None,
        score_layers=None,
        projection_layers=(),
        depth=None,
        first_only=False,
    ):
        """Args: input_ids (B, L); token_type_ids (B, L), None = all 0; attention_mask (B, L), 1 at real tokens and 0 at
        padding, None = no padding; score_layers: the layers (from 0) whose attention scores are wanted, None = all;
        projection_layers: those whose queries, keys and values are wanted; depth: the number of layers to run, None =
        all; first_only: of the last layer, only the hidden state of [CLS] is wanted, (B, 1, D), which the pooler reads.
        A layer without scores runs fused attention, which is faster and stores no (L, L) matrix."""
        hidden, mask_bias = self.embed(input_ids, token_type_ids, attention_mask)
        hidden_states, attention_scores, all_projections = [hidden], [], []
        for index, layer in enumerate(self.encoder.layer[:depth]):
            want_scores = score_layers is None or index in score_layers
            asking = hidden[:, :1] if first_only and index == len(self.encoder.layer) - 1 else None
            hidden, scores, projections = layer(hidden, mask_bias, want_scores, index in projection_layers, asking)
            hidden_states.append(hidden)
            attention_scores.append(scores)
            all_projections.append(projections)
        return BertOutput(hidden_states, attention_scores, all_projections, self.pooler(hidden))

    def embed(self, input_ids, token_type_ids=None, attention_mask=None):
        """The output of the embeddings (B, L, D) and the mask bias that attention takes, (B, 1, 1, L) or None."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        hidden, mask_bias = self.embeddings(input_ids, token_type_ids), None
        if attention_mask is not None:
            dtype = self.embeddings.LayerNorm.weight.dtype
            if torch.is_autocast_enabled(input_ids.device.type):
                dtype = torch.get_autocast_dtype(input_ids.device.type)
            mask_bias = torch.zeros(attention_mask.shape, dtype=dtype, device=input_ids.device)
            mask_bias = mask_bias.masked_fill(attention_mask == 0, torch.finfo(dtype).min)[:, None, None, :]
        return hidden, mask_bias


class BertPredictionHeadTransform(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden):
        return self.LayerNorm(self.activation(self.dense(hidden)))


class BertLMPredictionHead(nn.Module):
    """Scores over the vocabulary; the output matrix is the word embedding."""

    def __init__(self, config, word_embeddings):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.decoder.weight = word_embeddings.weight
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden):
        return self.decoder(self.transform(hidden)) + self.bias


class BertPreTrainingHeads(nn.Module):
    def __init__(self, config, word_embeddings, next_sentence):
        super().__init__()
        self.predictions = BertLMPredictionHead(config, word_embeddings)
        if next_sentence:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


def initialize(model, std):
    """Draw a model's matrices from a normal distribution of this deviation; biases become 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def projection_key(config):
    return "fit_denses.0.weight" if config.fit_per_layer else "fit_dense.weight"


class BertPreTrainedModel(nn.Module):
    """A model with a `bert` inside: initialization, the projection onto a teacher, reading and writing folders."""

    bert_class = BertModel
    architecture = None  # the Hugging Face class with the same keys; each subclass sets it and defines `add_heads`
    head = None  # prefix of the keys of a task's head
    output_names = ("logits",)  # of the head's outputs in exports; several are the parts of the last dimension

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bert = self.bert_class(config)
        self.add_heads(config)
        if config.fit_size and config.fit_per_layer:
            count = config.num_hidden_layers + 1
            self.fit_denses = nn.ModuleList(nn.Linear(config.hidden_size, config.fit_size) for _ in range(count))
        elif config.fit_size:
            self.fit_dense = nn.Linear(config.hidden_size, config.fit_size)
        initialize(self, config.initializer_range)
        if config.quantized:
            quantize(self.bert)  # heads are small, and the logits depend on them directly

    def project(self, hidden_states):
        """W_h of equations 8 and 9: hidden states in the teacher's width, [(B, L, D)] -> [(B, L, fit_size)]."""
        fits = self.fit_denses if self.config.fit_per_layer else [self.fit_dense] * len(hidden_states)
        return [fit(hidden) for fit, hidden in zip(fits, hidden_states, strict=True)]

    def num_parameters(self, part=""):
        """Number of weights, or of those whose names begin with `part`, without the projection of a training."""
        named = ((name, value) for name, value in self.named_parameters() if name.startswith(part))
        return sum(value.numel() for name, value in named if not name.startswith("fit_dense"))

    @classmethod
    def from_pretrained(cls, folder, fresh=(), **overrides):
        """Read a model folder: ours, Hugging Face's, or Huawei's. Raises UserError: no weights, an unreadable file, a
        shape that does not match.

        Args: fresh: key prefixes to initialize instead of reading (a new `classifier`, say); overrides: config values.
        A `fit_size` other than the checkpoint's initializes the projection and logs a warning.
        """
        folder = Path(folder)
        state = {key: value for key, value in load_state_dict(folder).items() if not key.startswith(tuple(fresh))}
        config = cls.read_config(folder, state, overrides)
        fit = state.get(projection_key(config))
        if fit is not None and config.fit_size not in (None, len(fit)):
            found = tuple(fit.shape)
            logging.warning("%s: fit_dense is %s, the teacher is %d wide: drawn anew", folder, found, config.fit_size)
            state = {key: value for key, value in state.items() if not key.startswith("fit_dense")}
        config.check_sizes(state, folder)
        model = cls(config)
        read_state(model, state, folder, fresh)
        return model

    @classmethod
    def read_config(cls, folder, state, overrides):
        """A model folder's config; what neither config.json nor `overrides` says comes from its weights (`state`)."""
        if any(key.startswith("fit_denses.") for key in state):
            overrides = {"fit_per_layer": True, **overrides}
        config = BertConfig.from_pretrained(folder, **overrides)
        if config.fit_size is None and "fit_size" not in overrides and projection_key(config) in state:
            config.fit_size = len(state[projection_key(config)])
        if f"{cls.head}.weight" in state and "id2label" not in config.__dict__ and "num_labels" not in overrides:
            config.num_labels = len(state[f"{cls.head}.weight"])
        return config

    def save_pretrained(self, folder):
        """Write config.json and the weights, each atomically. Hugging Face transformers can load the folder too."""
        self.config.save_pretrained(folder, self.architecture)
        save_weights(self.state_dict(), Path(folder) / WEIGHTS_NAME)


class BertForMaskedLM(BertPreTrainedModel):
    """Encoder and masked-LM head, for augmentation and pre-training."""

    architecture = "BertForMaskedLM"
    next_sentence = False

    def add_heads(self, config):
        self.cls = BertPreTrainingHeads(config, self.bert.embeddings.word_embeddings, self.next_sentence)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None):
        """Scores over the vocabulary, (B, L, V)."""
        output = self.bert(input_ids, token_type_ids, attention_mask, score_layers=())
        return self.cls.predictions(output.hidden_states[-1])


class TinyBertForPreTraining(BertForMaskedLM):
    """Teacher and student of general distillation; with `fit_dense` if config.fit_size is set."""

    architecture = "BertForPreTraining"
    next_sentence = True


class TinyBertForSequenceClassification(BertPreTrainedModel):
    """Encoder and classifier (with one label, a regressor): teachers and students of every task."""

    architecture, head = CLASSIFIER, "classifier"

    def add_heads(self, config):
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, score_layers=()):
        """Returns (logits (B, C), BertOutput). `score_layers`: as in BertModel.forward, but none by default; the last
        layer then runs for [CLS] only, and hidden_states[-1] is (B, 1, D). `bert` itself gives all of it."""
        first_only = score_layers is not None and not score_layers
        output = self.bert(input_ids, token_type_ids, attention_mask, score_layers, first_only=first_only)
        # The reference has a ReLU here; Hugging Face teachers are trained without it and score lower with it.
        pooled = F.relu(output.pooled) if self.config.pooled_relu else output.pooled
        return self.classifier(self.dropout(pooled)), output

    @classmethod
    def read_config(cls, folder, state, overrides):
        config = super().read_config(folder, state, overrides)
        if "classifier.weight" in state and "pooled_relu" not in {**read_json(folder / CONFIG_NAME), **overrides}:
            # Huawei's releases, which have these keys, were trained with the reference's extra ReLU.
            config.pooled_relu = hasattr(config, "pre_trained") or hasattr(config, "training")
        return config


class TinyBertForTokenClassification(TinyBertForSequenceClassification):
    """Encoder and a classifier of each token."""

    architecture = "BertForTokenClassification"

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, score_layers=()):
        """Returns (logits (B, L, C), BertOutput)."""
        output = self.bert(input_ids, token_type_ids, attention_mask, score_layers)
        return self.classifier(self.dropout(output.hidden_states[-1])), output


class TinyBertForQuestionAnswering(BertPreTrainedModel):
    """Encoder and, for each token, the logits of an answer's start and end."""

    architecture, head = "BertForQuestionAnswering", "qa_outputs"
    output_names = ("start_logits", "end_logits")

    def add_heads(self, config):
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, score_layers=()):
        """Returns (logits (B, L, 2), BertOutput)."""
        output = self.bert(input_ids, token_type_ids, attention_mask, score_layers)
        return self.qa_outputs(output.hidden_states[-1]), output
