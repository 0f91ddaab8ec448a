"""The classes under the signatures of the published TinyBERT code, for programs written against it.

`from transformer import BertModel` gives the class here, `from transformer.modeling import BertModel` this suite's own.
Weights, folders and numbers are the same. Shapes: as in modeling.py.
"""

import copy
import inspect
import json
import logging
import re
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from transformer import configuration, modeling, tokenization
from transformer.checkpoint import CONFIG_NAME, load_state_dict, read_state, rename_key
from transformer.downloads import cache_folder, model_folder
from transformer.files import atomic_write, make_folder
from transformer.json_file import read_json

PYTORCH_PRETRAINED_BERT_CACHE = cache_folder(None)
WHOLE = tuple(tokenization.SPECIAL_TOKENS.values())  # the tokens that stay whole


# --- configuration


class BertConfig(configuration.BertConfig):
    """A model's configuration, from a vocabulary size and sizes, or from a JSON file. Raises ValueError for another
    first argument, UserError for a bad value."""

    # These classifiers have the ReLU unless a file denies it. `pre_trained` and `training`, in every file that is
    # written here, tell this suite's other classes so (`modeling.read_config`).
    DEFAULTS = {**configuration.BertConfig.DEFAULTS, "pooled_relu": True, "pre_trained": "", "training": ""}

    def __init__(
        self,
        vocab_size_or_config_json_file,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        max_position_embeddings=512,
        type_vocab_size=2,
        initializer_range=0.02,
        pre_trained="",
        training="",
    ):
        given, first = dict(locals()), vocab_size_or_config_json_file
        values = {name: given[name] for name in self.DEFAULTS if name in given}
        if isinstance(first, str | Path):
            values = read_json(first)
        elif type(first) is int:
            values["vocab_size"] = first
        else:
            raise ValueError(f"BertConfig: the first argument is {first!r}, expected a vocabulary size or a JSON file")
        super().__init__(**values)

    @classmethod
    def from_dict(cls, json_object):
        config = cls.__new__(cls)
        configuration.BertConfig.__init__(config, **json_object)
        return config

    @classmethod
    def from_json_file(cls, json_file):
        """Read a config.json, of this suite or any other. Raises UserError when it is missing or malformed."""
        return cls.from_pretrained(json_file)

    def to_dict(self):
        named = inspect.signature(BertConfig).parameters.keys() | {"vocab_size"}
        values = {key: self.__dict__[key] for key in self.DEFAULTS if key in named}
        return copy.deepcopy(values | super().to_dict())

    def to_json_string(self):
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path):
        with atomic_write(json_file_path) as file:
            file.write(self.to_json_string())


# --- models


class _Encoder(modeling.BertModel):
    """BERT with the published outputs."""

    def forward(
        self, input_ids, token_type_ids=None, attention_mask=None, output_all_encoded_layers=True, output_att=True
    ):
        """Returns (hidden states, attention scores, pooled (B, D)): the first two with a tensor for each layer, the
        embeddings' output first in the hidden states. Scores (B, H, L, L) are those before the softmax, with -10000
        added at padding. Only the last hidden state without `output_all_encoded_layers`, no scores without
        `output_att`."""
        layers = None if output_att else ()
        output = super().forward(input_ids, token_type_ids, attention_mask, score_layers=layers)
        states = output.hidden_states if output_all_encoded_layers else output.hidden_states[-1]
        if not output_att:
            return states, output.pooled
        scores = output.attention_scores
        if attention_mask is not None:
            scores = [each + (1.0 - attention_mask[:, None, None, :].to(each.dtype)) * -10000.0 for each in scores]
        return states, scores, output.pooled


class _Folders:
    """Reading model folders in the published way: what follows the folder goes to the constructor."""

    bert_class = _Encoder

    @classmethod
    def from_scratch(cls, pretrained_model_name_or_path, *inputs, cache_dir=None, **kwargs):
        """A model of the sizes in a folder's config.json, its weights drawn at random."""
        folder = model_folder(pretrained_model_name_or_path, cache_dir, need_weights=False)
        return cls._make(BertConfig.from_json_file(folder / CONFIG_NAME), inputs, kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *inputs, state_dict=None, cache_dir=None, **kwargs):
        """A model with the weights of a folder (this suite's, Hugging Face's or Huawei's), or with those in
        `state_dict`. Raises UserError as `modeling.BertPreTrainedModel.from_pretrained` does."""
        folder = model_folder(pretrained_model_name_or_path, cache_dir, need_weights=state_dict is None)
        state = load_state_dict(folder) if state_dict is None else state_dict
        state = {rename_key(key): value for key, value in state.items()}
        config = BertConfig.from_json_file(folder / CONFIG_NAME)
        config.fit_per_layer = any(key.startswith("fit_denses.") for key in state)
        config.fit_size = len(state.get(modeling.projection_key(config), ())) or config.fit_size
        config.check_sizes(state, folder)
        model = cls._make(config, inputs, kwargs)
        # The encoder alone has its keys without the prefix that checkpoints have.
        prefixed = model if hasattr(model, "bert") else nn.ModuleDict({"bert": model})
        read_state(prefixed, state, folder)
        return model

    @classmethod
    def _make(cls, config, inputs, kwargs):
        signature = inspect.signature(cls)
        given = signature.bind_partial(config, *inputs, **kwargs).arguments
        if config.fit_size and "fit_size" in signature.parameters and "fit_size" not in given:
            kwargs = {**kwargs, "fit_size": config.fit_size}  # the folder's projection rather than the default width
        return cls(config, *inputs, **kwargs)


def _checked(config, fit_size=None):
    """A copy of a configuration of this module, with a projection onto `fit_size`."""
    if not isinstance(config, BertConfig):
        raise ValueError(f"expected a transformer.BertConfig, got {type(config).__name__}")
    config = copy.copy(config)
    config.fit_size = fit_size
    return config


class BertModel(_Folders, _Encoder):
    """The encoder."""

    def __init__(self, config):
        super().__init__(_checked(config))
        modeling.initialize(self, config.initializer_range)


class _WithHead(_Folders, modeling.BertPreTrainedModel):
    """An encoder `bert` and a head."""

    def __init__(self, config):
        super().__init__(_checked(config))


def _cross_entropy(scores, labels):
    """Mean over the labels that are not -1. scores: (..., C), labels: (...)."""
    return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1), ignore_index=-1)


class BertForPreTraining(_WithHead, modeling.TinyBertForPreTraining):
    """Both heads of BERT's pre-training."""

    def forward(
        self, input_ids, token_type_ids=None, attention_mask=None, masked_lm_labels=None, next_sentence_label=None
    ):
        """Returns (scores over the vocabulary (B, L, V), next-sentence scores (B, 2)); with `masked_lm_labels` (B, L),
        -1 where none is wanted, its loss, to which `next_sentence_label` (B,) adds the other one."""
        hidden, pooled = self.bert(input_ids, token_type_ids, attention_mask, False, False)
        scores, next_sentence = self.cls.predictions(hidden), self.cls.seq_relationship(pooled)
        if masked_lm_labels is None:
            return scores, next_sentence
        loss = _cross_entropy(scores, masked_lm_labels)
        return loss if next_sentence_label is None else loss + _cross_entropy(next_sentence, next_sentence_label)


class BertForMaskedLM(_WithHead, modeling.BertForMaskedLM):
    """The masked-LM head."""

    def forward(
        self, input_ids, token_type_ids=None, attention_mask=None, masked_lm_labels=None, output_att=False, infer=False
    ):
        """Returns scores over the vocabulary (B, L, V), or with labels (B, L) the loss; with `output_att` a pair of
        that and the attention scores. `infer` changes nothing."""
        hidden, *scores, _ = self.bert(input_ids, token_type_ids, attention_mask, False, output_att)
        result = self.cls.predictions(hidden)
        if masked_lm_labels is not None:
            result = _cross_entropy(result, masked_lm_labels)
        return (result, *scores) if output_att else result


class BertForNextSentencePrediction(_WithHead):
    """The head that tells whether the second sentence follows the first."""

    architecture = "BertForNextSentencePrediction"

    def add_heads(self, config):
        self.cls = nn.ModuleDict({"seq_relationship": nn.Linear(config.hidden_size, 2)})

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, next_sentence_label=None):
        """Returns scores (B, 2), the first for "follows"; with labels (B,) the loss."""
        _, pooled = self.bert(input_ids, token_type_ids, attention_mask, False, False)
        scores = self.cls["seq_relationship"](pooled)
        return scores if next_sentence_label is None else _cross_entropy(scores, next_sentence_label)


class TinyBertForPreTraining(_Folders, modeling.TinyBertForPreTraining):
    """Student of general distillation. `fit_size`: the teacher's width."""

    def __init__(self, config, fit_size=768):
        super().__init__(_checked(config, fit_size))

    def forward(
        self, input_ids, token_type_ids=None, attention_mask=None, masked_lm_labels=None, next_sentence_label=None
    ):
        """Returns (attention scores, hidden states in the teacher's width). The labels change nothing."""
        states, scores, _ = self.bert(input_ids, token_type_ids, attention_mask)
        return scores, self.project(states)


class TinyBertForSequenceClassification(_Folders, modeling.TinyBertForSequenceClassification):
    """Teacher or student of task distillation. `fit_size`: the teacher's width."""

    def __init__(self, config, num_labels, fit_size=768):
        config = _checked(config, fit_size)
        if len(config.__dict__.get("id2label") or ()) != num_labels:  # names of another task's classes
            config.__dict__.pop("id2label", None)
            config.__dict__.pop("label2id", None)
        config.num_labels = num_labels
        super().__init__(config)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, labels=None, is_student=False):
        """Returns (logits (B, C), attention scores, hidden states, for a student in the teacher's width). `labels`
        change nothing. As published, nothing is dropped out before the classifier."""
        states, scores, pooled = self.bert(input_ids, token_type_ids, attention_mask)
        logits = self.classifier(F.relu(pooled) if self.config.pooled_relu else pooled)
        return logits, scores, self.project(states) if is_student else states


# --- tokenizer


class BasicTokenizer(tokenization.BasicTokenizer):
    """Splits text into words and punctuation marks; `never_split`: tokens that stay as they are."""

    def __init__(self, do_lower_case=True, never_split=WHOLE):
        super().__init__(do_lower_case)
        self.never_split = tuple(never_split)
        # Special tokens stay whole anywhere, others only between spaces: they may be parts of words.
        alone = {token: rf"(?<!\S){re.escape(token)}(?!\S)" for token in self.never_split}
        whole = [re.escape(token) if token in WHOLE else pattern for token, pattern in alone.items()]
        self._whole = re.compile(f"({'|'.join(whole) or '(?!)'})")

    def tokenize(self, text):
        parts = enumerate(self._whole.split(text))  # every second part is one of the tokens
        return [word for index, part in parts for word in ([part] if index % 2 else self._split(part))]


class WordpieceTokenizer(tokenization.WordpieceTokenizer):
    """Splits the words of a text into pieces of a vocabulary."""

    def __init__(self, vocab, unk_token="[UNK]", max_input_chars_per_word=100):
        super().__init__(vocab, max_input_chars_per_word)
        self.unknown = unk_token

    def tokenize(self, text):
        return [piece for word in text.split() for piece in super(WordpieceTokenizer, self).tokenize(word)]


class BertTokenizer:
    """Text to word pieces and back. `vocab_file`: its path, or {token: id}; `max_len`: the most ids of one sequence;
    `do_basic_tokenize`: False where the text is split into words already; `basic_only`: words, not pieces."""

    def __init__(
        self, vocab_file, do_lower_case=True, max_len=None, do_basic_tokenize=True, basic_only=False, never_split=WHOLE
    ):
        self.vocab = vocab_file if isinstance(vocab_file, dict) else tokenization.load_vocab(vocab_file)
        self.ids_to_tokens = {token_id: token for token, token_id in self.vocab.items()}
        self.max_len = int(1e12) if max_len is None else max_len
        self.do_basic_tokenize, self.basic_only = do_basic_tokenize, basic_only
        self.basic_tokenizer = BasicTokenizer(do_lower_case, never_split)
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab)

    def tokenize(self, text):
        """The word pieces of a text."""
        words = self.basic_tokenizer.tokenize(text) if self.do_basic_tokenize else text.split()
        if self.do_basic_tokenize and self.basic_only:
            return words
        return [piece for word in words for piece in self.wordpiece_tokenizer.tokenize(word)]

    def convert_tokens_to_ids(self, tokens):
        """Raises KeyError for a token that is not in the vocabulary; logs a warning where there are too many."""
        if len(tokens) > self.max_len:
            logging.warning("%d tokens, expected at most max_len, %d", len(tokens), self.max_len)
        return [self.vocab[token] for token in tokens]

    def convert_ids_to_tokens(self, ids):
        return [self.ids_to_tokens[token_id] for token_id in ids]

    def save_vocabulary(self, vocab_path):
        """Write vocab.txt into a folder, which is made where there is none. Returns the file's path."""
        path = make_folder(vocab_path) / tokenization.VOCAB_NAME
        with atomic_write(path) as file:
            file.writelines(f"{self.ids_to_tokens[token_id]}\n" for token_id in sorted(self.ids_to_tokens))
        return str(path)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, cache_dir=None, do_lower_case=None, **kwargs):
        """The tokenizer of a model folder, or of a vocabulary file. Without `do_lower_case` the model decides."""
        path = Path(pretrained_model_name_or_path)
        if not path.is_file():
            path = model_folder(pretrained_model_name_or_path, cache_dir, need_weights=False)
        found = tokenization.BertTokenizer.from_pretrained(path, do_lower_case)
        tokenizer = cls(found.vocab, found.do_lower_case, **kwargs)
        for name in ("strip_accents", "tokenize_chinese_chars"):  # what tokenizer_config.json says
            setattr(tokenizer.basic_tokenizer, name, getattr(found.basic_tokenizer, name))
        return tokenizer
