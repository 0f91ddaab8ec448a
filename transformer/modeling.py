"""BERT and TinyBERT: the configuration, then the model from leaf to root, then reading and writing model folders.

Shapes, once for all:  B batch, L sequence length, D hidden size, H attention heads, d = D / H, V vocabulary, C classes.
Module names are the checkpoint's keys, which is why `LayerNorm`, `self` and `fit_dense` look the way they do.
Paper: TinyBERT, arXiv 1909.10351; BERT, arXiv 1810.04805.
"""

import logging
import math
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from transformer.files import UserError, atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "pytorch_model.bin"
SAFE_WEIGHTS_NAME = "model.safetensors"

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class BertConfig:
    """The contents of `config.json`. Attributes are its keys; keys unknown here are kept and written back.

    `fit_size`: width of the teacher that `fit_dense` projects onto; None = the model has no projection.
    `fit_per_layer`: one projection for each hidden state (`fit_denses.N`, as Huawei's second release has it).
    `pooled_relu`: a ReLU between pooler and classifier, as the reference implementation has and Hugging Face has not.
    """

    DEFAULTS = {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "fit_size": None,
        "fit_per_layer": False,
        "pooled_relu": False,
        "num_labels": 2,
        "pad_token_id": 0,
    }
    POSITIVE_INTEGERS = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "num_labels",
    )
    FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob")

    def __init__(self, **values):
        """Raises UserError for a value of the wrong kind or a width that the heads do not divide."""
        if values.get("id2label"):
            names = values["id2label"]
            try:
                values["id2label"] = {int(index): str(name) for index, name in names.items()}
            except (AttributeError, ValueError):
                raise UserError(f"{CONFIG_NAME}: id2label is {names!r}, expected a name for each number") from None
            values["num_labels"] = len(values["id2label"])
        self.__dict__.update(self.DEFAULTS)
        self.__dict__.update(values)
        self._validate()

    def _validate(self):
        for key in self.POSITIVE_INTEGERS:
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{CONFIG_NAME}: {key} is {value!r}, expected a positive whole number")
        for key in self.FRACTIONS:
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserError(f"{CONFIG_NAME}: {key} is {value!r}, expected a number from 0 up to 1")
        for key in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UserError(f"{CONFIG_NAME}: {key} is {value!r}, expected a number that is not negative")
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(f"{CONFIG_NAME}: pad_token_id is {self.pad_token_id!r}, expected a token's number")
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            raise UserError(f"{CONFIG_NAME}: hidden_act is {self.hidden_act!r}, expected one of {known}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{CONFIG_NAME}: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )

    @classmethod
    def from_pretrained(cls, folder, **overrides):
        """Read `folder`/config.json (or that file itself). Raises UserError when it is missing or malformed."""
        path = Path(folder)
        path = path / CONFIG_NAME if path.is_dir() else path
        values = read_json(path)
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected one JSON object")
        try:
            return cls(**{**values, **overrides})
        except UserError as error:
            raise UserError(f"{path.parent}/{error}") from None

    def to_dict(self):
        return {key: value for key, value in self.__dict__.items() if value != self.DEFAULTS.get(key, self)}

    def save_pretrained(self, folder, architecture):
        """Write config.json such that Hugging Face's AutoConfig picks the same `architecture`."""
        sizes = {key: getattr(self, key) for key in self.DEFAULTS if getattr(self, key) is not None}
        if self.__dict__.get("id2label"):
            sizes.pop("num_labels")  # Hugging Face derives it from id2label
        values = {**sizes, **self.to_dict(), "model_type": "bert", "architectures": [architecture]}
        values["dtype"] = values["torch_dtype"] = "float32"  # the key's old and new name
        values.pop("finetuning_task", None)  # of the model that this one started from, as its label2id is
        values.pop("label2id", None)
        if values.get("id2label"):
            values["label2id"] = {name: index for index, name in values["id2label"].items()}
        write_json(Path(folder) / CONFIG_NAME, values)


class BertEmbeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config):
        super().__init__()
        # [PAD] learns nothing, as in the reference.
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids):
        length = input_ids.shape[1]
        hidden = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)  # (B, L, D)
        hidden = hidden + self.position_embeddings.weight[:length]
        return self.dropout(self.LayerNorm(hidden))


class BertSelfAttention(nn.Module):
    """Scaled dot-product attention in H heads; hands out its scores (equation 1 of the paper) when asked for them."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_prob = config.attention_probs_dropout_prob

    def _heads(self, projected):
        return projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, L, D) -> (B, H, L, d)

    def forward(self, hidden, mask_bias, want, distinct=None):
        """`mask_bias` (B, 1, 1, L): 0 at real keys, the lowest number at padding, or None; `distinct`: see
        BertModel.states_at.

        Returns the context and what is wanted: "scores", "projections" (queries, keys, values) or None.
        """
        if distinct is None:
            projections = self.query(hidden), self.key(hidden), self.value(hidden)  # (B, L, D) each
        else:
            places, copies = distinct
            few = hidden.flatten(0, 1)[places]  # (U, D)
            # F.embedding takes rows faster than an index in brackets does.
            projections = tuple(F.embedding(copies, project(few)) for project in (self.query, self.key, self.value))
        query, key, value = map(self._heads, projections)
        dropout_prob = self.dropout_prob if self.training else 0.0
        if want == "scores":
            # Scores leave without the mask: the losses choose by themselves which pairs of positions count.
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, H, L, L)
            probs = F.softmax(scores if mask_bias is None else scores + mask_bias, dim=-1)
            context = F.dropout(probs, dropout_prob, training=self.training) @ value
        else:  # the fused kernel never writes scores to memory
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_bias, dropout_p=dropout_prob)
        wanted = scores if want == "scores" else projections if want == "projections" else None
        return context.transpose(1, 2).flatten(2), wanted  # (B, L, D), (B, H, L, L) or three times (B, L, D)

    def of_one_query(self, asking, hidden, mask_bias):
        """The context (B, D) of one query a sequence, made from `asking` (B, D); keys and values from `hidden`. Has no
        dropout: for evaluation only.

        A score is q (W_K h + b) = (W_K^T q) h + q b. The last term is the same for all keys, so softmax ignores it; and
        W_K is taken to one q, not to L hidden states. W_V likewise: to the mean of the hidden states.
        """
        query = self.query(asking).unflatten(1, (self.num_heads, -1))  # (B, H, d)
        key_weight, value_weight = (
            linear.weight.unflatten(0, (self.num_heads, -1)) for linear in (self.key, self.value)
        )  # (H, d, D)
        folded = torch.einsum("bhd,hde->bhe", query, key_weight)  # (B, H, D)
        scores = folded @ hidden.transpose(1, 2) / math.sqrt(query.shape[-1])  # (B, H, L)
        probs = F.softmax(scores if mask_bias is None else scores + mask_bias[:, 0], dim=-1)
        means = probs @ hidden  # (B, H, D)
        return torch.einsum("bhe,hde->bhd", means, value_weight).flatten(1) + self.value.bias


class BertResidualOutput(nn.Module):
    """Linear, dropout, residual, LayerNorm: the end of both halves of a layer."""

    def __init__(self, config, input_size):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidualOutput(config, config.hidden_size)

    def forward(self, hidden, mask_bias, want, distinct):
        context, wanted = self.self(hidden, mask_bias, want, distinct)
        return self.output(context, hidden), wanted


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

    def forward(self, hidden, mask_bias, want, distinct=None):
        attended, wanted = self.attention(hidden, mask_bias, want, distinct)
        return self.output(self.intermediate(attended), attended), wanted

    def at(self, positions, hidden, mask_bias):
        """The layer's output at `positions` (B,) only, one of each sequence: (B, D)."""
        asking = hidden[torch.arange(len(hidden), device=hidden.device), positions]
        attended = self.attention.output(self.attention.self.of_one_query(asking, hidden, mask_bias), asking)
        return self.output(self.intermediate(attended), attended)


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
    """hidden_states: 1 + layers tensors (B, L, D), the embedding output first. attention_scores: one (B, H, L, L) for
    each layer, before mask and softmax, None where not asked for; or queries, keys and values, (B, L, D) each, where
    "projections" were wanted. pooled: (B, D)."""

    hidden_states: list
    attention_scores: list
    pooled: torch.Tensor


class BertModel(nn.Module):
    """The encoder. Equal to Hugging Face's BertModel on every output."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)

    def forward(
        self, input_ids, token_type_ids=None, attention_mask=None, score_layers=None, want="scores", num_layers=None
    ):
        """Run the encoder.

        Args: input_ids (B, L) whole numbers; token_type_ids (B, L), 0 where None; attention_mask (B, L), 1 at real
        tokens and 0 at padding, None = no padding; score_layers: the layers (from 0) whose attention scores are wanted,
        None = all; want: "projections" for queries, keys and values in place of the scores; num_layers: run only so
        many layers, None = all. Layers without scores run fused attention, which is faster and keeps no (L, L) matrix.
        """
        hidden, mask_bias = self._embed(input_ids, token_type_ids, attention_mask)
        hidden_states, attention_scores = [hidden], []
        for index, layer in enumerate(self.encoder.layer[:num_layers]):
            wanted = want if score_layers is None or index in score_layers else None
            hidden, scores = layer(hidden_states[-1], mask_bias, wanted)
            hidden_states.append(hidden)
            attention_scores.append(scores)
        return BertOutput(hidden_states, attention_scores, self.pooler(hidden_states[-1]))

    def states_at(self, positions, input_ids, token_type_ids=None, attention_mask=None, distinct=None):
        """The last hidden state at one position of each sequence, (B, D): in evaluation forward's, for less work.

        Args: positions (B,); then as for forward; distinct: (places, copies): places (U,), an index into the flat batch
        for each different (id, segment, position), and copies (B, L), each token's index into `places`. Only the U go
        through the first layer's projections (of two layers or more): copies of a sentence with other masks have most
        tokens in common.
        """
        assert not self.training
        hidden, mask_bias = self._embed(input_ids, token_type_ids, attention_mask)
        for layer in self.encoder.layer[:-1]:
            hidden, _ = layer(hidden, mask_bias, None, distinct)
            distinct = None  # each token has seen its sentence now
        return self.encoder.layer[-1].at(positions, hidden, mask_bias)

    def _embed(self, input_ids, token_type_ids, attention_mask):
        """The embeddings' output (B, L, D), and what attention adds to its scores: (B, 1, 1, L) or None."""
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
    """Scores over the vocabulary; the output matrix is the word embedding itself."""

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


class BertPreTrainedModel(nn.Module):
    """What all models with a `bert` inside share: initialisation, the projection onto a teacher, reading, writing."""

    architecture = None  # the Hugging Face class that reads the same keys

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bert = BertModel(config)

    def _finish(self):
        """Add the projection and draw every weight; called last by each model's constructor."""
        config = self.config
        if config.fit_size and config.fit_per_layer:
            count = config.num_hidden_layers + 1
            self.fit_denses = nn.ModuleList(nn.Linear(config.hidden_size, config.fit_size) for _ in range(count))
        elif config.fit_size:
            self.fit_dense = nn.Linear(config.hidden_size, config.fit_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def project(self, hidden_states):
        """W_h of equations 8 and 9: hidden states in the teacher's width, [(B, L, D)] -> [(B, L, fit_size)]."""
        if self.config.fit_per_layer:
            return [fit(hidden) for fit, hidden in zip(self.fit_denses, hidden_states, strict=True)]
        return [self.fit_dense(hidden) for hidden in hidden_states]

    def num_parameters(self, with_projection=False):
        """Number of weights; the projection serves training only and is left out unless asked for."""
        return sum(
            parameter.numel()
            for name, parameter in self.named_parameters()
            if with_projection or not name.startswith(("fit_dense.", "fit_denses."))
        )

    @classmethod
    def from_pretrained(cls, folder, fresh=(), **overrides):
        """Read a model folder: ours, Hugging Face's, or Huawei's.

        Args: folder: path with config.json and weights; fresh: key prefixes to draw anew instead of reading (a new
        `classifier`, say); overrides: config values. `fit_size` that differs from the checkpoint's draws the projection
        anew and says so. Raises UserError: no weights, an unreadable file, a shape that does not match.
        """
        folder = Path(folder)
        state = load_state_dict(folder)
        if any(key.startswith("fit_denses.") for key in state):
            overrides.setdefault("fit_per_layer", True)
        config = BertConfig.from_pretrained(folder, **overrides)
        fit_key = "fit_denses.0.weight" if config.fit_per_layer else "fit_dense.weight"
        if config.fit_size is None and "fit_size" not in overrides and fit_key in state:
            config.fit_size = state[fit_key].shape[0]
        if "classifier.weight" in state and "classifier" not in fresh:
            if "id2label" not in config.__dict__ and "num_labels" not in overrides:
                config.num_labels = state["classifier.weight"].shape[0]
            # Huawei's releases, known by these keys, have classifiers trained behind the reference's extra ReLU.
            if "pooled_relu" not in {**read_json(folder / CONFIG_NAME), **overrides}:
                config.pooled_relu = hasattr(config, "pre_trained") or hasattr(config, "training")
        model = cls(config)
        if fit_key in state and config.fit_size not in (None, state[fit_key].shape[0]):
            fresh = (*fresh, "fit_dense")
            found = tuple(state[fit_key].shape)
            logger.warning("%s: fit_dense is %s, the teacher is %d wide: drawn anew", folder, found, config.fit_size)
        report_keys(folder, model.read_state(state, folder, fresh), fresh)
        return model

    def read_state(self, state, source, fresh=()):
        """Copy a state dict into this model; returns (missing, unexpected) keys. UserError on a shape mismatch."""
        state = {key: value for key, value in state.items() if not key.startswith(tuple(fresh))}
        own = self.state_dict()
        for key, value in state.items():
            if key in own and own[key].shape != value.shape:
                raise UserError(
                    f"{source}: {key} has shape {tuple(value.shape)}, {CONFIG_NAME} asks for {tuple(own[key].shape)}"
                )
        # The decoder is the word embedding; the copies that some checkpoints carry say nothing new.
        keys = self.load_state_dict(
            {key: value.to(own[key].dtype) for key, value in state.items() if key in own}, False
        )
        tied = "cls.predictions.decoder."
        missing = [key for key in keys.missing_keys if not key.startswith(tied)]
        unexpected = [key for key in state if key not in own and not key.startswith(tied)]
        return missing, unexpected

    def save_pretrained(self, folder, weights_name=WEIGHTS_NAME):
        """Write config.json and the weights, each atomically. The folder then loads in Hugging Face transformers."""
        folder = Path(folder)
        self.config.save_pretrained(folder, self.architecture)
        save_weights(self.state_dict(), folder / weights_name)


class BertForMaskedLM(BertPreTrainedModel):
    """Encoder and masked-LM head, for augmentation and pre-training."""

    architecture = "BertForMaskedLM"
    next_sentence = False

    def __init__(self, config):
        super().__init__(config)
        self.cls = BertPreTrainingHeads(config, self.bert.embeddings.word_embeddings, self.next_sentence)
        self._finish()

    def forward(self, input_ids, token_type_ids=None, attention_mask=None):
        """Scores over the vocabulary, (B, L, V)."""
        output = self.bert(input_ids, token_type_ids, attention_mask, score_layers=())
        return self.cls.predictions(output.hidden_states[-1])


class TinyBertForPreTraining(BertForMaskedLM):
    """Teacher and student of general distillation; `fit_dense` where config.fit_size is set."""

    architecture = "BertForPreTraining"
    next_sentence = True


class TinyBertForSequenceClassification(BertPreTrainedModel):
    """Encoder and classifier (or, with one label, regressor): teachers and students of every task."""

    architecture = "BertForSequenceClassification"

    def __init__(self, config):
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._finish()

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, score_layers=()):
        """Returns (logits (B, C), BertOutput). No attention scores unless `score_layers` asks for them (None = all)."""
        output = self.bert(input_ids, token_type_ids, attention_mask, score_layers)
        # The reference puts a ReLU here; Hugging Face teachers never saw one and score lower with it.
        pooled = F.relu(output.pooled) if self.config.pooled_relu else output.pooled
        return self.classifier(self.dropout(pooled)), output


def weights_file(folder):
    """The file of `folder` that holds the weights, or None. Ours is preferred where both kinds are there."""
    for name in (WEIGHTS_NAME, SAFE_WEIGHTS_NAME):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def load_state_dict(folder):
    """Read a checkpoint's tensors under today's key names. Raises UserError: none there, truncated,
    code inside, numbers that are none."""
    path = weights_file(folder)
    if path is None:
        raise UserError(
            f"{folder}: no weights ({WEIGHTS_NAME} or {SAFE_WEIGHTS_NAME}); "
            "`python -m transformer.file_utils teacher` fetches the teacher's into teacher_model/"
        )
    if path.name == SAFE_WEIGHTS_NAME:
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise UserError(f"{path}: needs the safetensors package: pip install safetensors") from None
        reader = load_file
    else:
        # weights_only: a pickle may carry code, and a model that somebody sent must not run any.
        def reader(name):
            return torch.load(name, map_location="cpu", weights_only=True)

    try:
        state = reader(path)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors (or is damaged), refused") from None
    except Exception as error:  # both readers raise many kinds for a damaged file, none of them documented
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a dictionary of tensors")
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: {key} holds NaN or infinite numbers: damaged, or its training failed")
    return {rename_key(key): value for key, value in state.items() if not key.endswith("position_ids")}


def rename_key(key):
    """Today's name of a checkpoint key: old ones have gamma and beta, DataParallel's prefix, or no `bert.`."""
    key = key.removeprefix("module.")
    key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{key}" if key.startswith(("embeddings.", "encoder.", "pooler.")) else key


def report_keys(source, keys, fresh=()):
    """Say which weights the checkpoint did not have, and which of its weights found no place.

    Raises UserError where a part of the encoder is missing: drawn at random, it would teach and answer nonsense.
    """
    missing, unexpected = keys
    missing = [key for key in missing if not key.startswith(("fit_dense", *fresh))]
    gaps = [key for key in missing if key.startswith(("bert.embeddings.", "bert.encoder."))]
    if gaps:
        more = f" and {len(gaps) - 1} more keys" if len(gaps) > 1 else ""
        raise UserError(f"{source}: the weights lack {gaps[0]}{more}, which {CONFIG_NAME} asks for")
    for title, names in (
        ("not in the checkpoint, drawn at random", missing),
        ("in the checkpoint, not used", unexpected),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            logger.info("%s: %s: %s%s", source, title, ", ".join(names[:4]), more)


def save_weights(state, path):
    """Write a state dict, its tensors on the CPU, atomically: a reader sees the old file or the whole new one."""
    copies = {}  # by place in memory, so that tied tensors are written once from any device
    state = {
        key: copies.setdefault((value.data_ptr(), value.shape), value.detach().to("cpu").contiguous())
        for key, value in state.items()
    }
    with atomic_write(path, "wb") as file:
        torch.save(state, file)


def check_vocabulary(config, tokenizer, folder):
    """Raise UserError when config.json and vocab.txt are not of one model; a config may round up, by less than 128."""
    size = len(tokenizer.vocab)
    if not size <= config.vocab_size < size + 128:
        raise UserError(f"{folder}: vocab.txt has {size} tokens, config.json says vocab_size {config.vocab_size}")


def label_names(config):
    """The class names a config gives, in the order of the logits, or None where it has only LABEL_0, LABEL_1, ..."""
    names = config.__dict__.get("id2label")
    if not names or all(str(name).startswith("LABEL_") for name in names.values()):
        return None
    return [str(names[index]) for index in sorted(names)]


def describe(model):
    """One phrase for the log: layers, width, heads, parameters."""
    config = model.config
    return (
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{model.num_parameters() / 1e6:.1f} M parameters"
    )


def stored_labels(folder):
    """The number of classes of the classifier in a model folder's weights; 0 where it has none."""
    weight = load_state_dict(folder).get("classifier.weight")
    return 0 if weight is None else weight.shape[0]
