"""A model's config.json."""

from pathlib import Path

import torch.nn.functional as F

from transformer.checkpoint import CONFIG_NAME, check_shape
from transformer.downloads import check_model_type, need
from transformer.files import UserError, write_json
from transformer.json_file import FLAG, NULL, NUMBER, Field, check, read_json, whole
from transformer.quantization import INT8

CLASSIFIER = "BertForSequenceClassification"  # the architecture that `pooled_relu` is about
PRETRAINED = ("BertForPreTraining", "BertForMaskedLM")  # those without a task
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}
DROPOUT = Field("a number from 0 up to 1, 1 excluded", NUMBER, 0, 1 - 1e-6)
SMALL = Field("a number from 0 to 1,000", NUMBER, 0, 1000)
WIDTH = Field("a whole number, 0 to 32,768, or null", (int, NULL), 0, 1 << 15)
# {key: (default, what it may be)}. Sizes end far beyond any BERT's: a damaged file is told before anything is made.
KEYS = {
    "vocab_size": (30522, whole(1, 1 << 24)),
    "hidden_size": (768, whole(1, 1 << 15)),
    "num_hidden_layers": (12, whole(1, 1000)),
    "num_attention_heads": (12, whole(1, 1 << 15)),
    "intermediate_size": (3072, whole(1, 1 << 18)),
    "hidden_act": ("gelu", Field(f"one of {', '.join(sorted(ACTIVATIONS))}", choices=tuple(ACTIVATIONS))),
    "hidden_dropout_prob": (0.1, DROPOUT),
    "attention_probs_dropout_prob": (0.1, DROPOUT),
    "max_position_embeddings": (512, whole(1, 1 << 20)),
    "type_vocab_size": (2, whole(1, 1000)),
    "initializer_range": (0.02, SMALL),
    "layer_norm_eps": (1e-12, SMALL),
    "fit_size": (None, WIDTH),
    "fit_per_layer": (False, FLAG),
    "pooled_relu": (False, FLAG),
    "num_labels": (2, whole(1, 100_000)),
    "pad_token_id": (0, whole(0, 1 << 24)),
    "quantized": (None, Field(f"{INT8} or no such key", (str, NULL), choices=(INT8, None))),
}
FIELDS = {key: field for key, (_, field) in KEYS.items()}
FIELDS["id2label"] = Field("a name for each number", (dict, NULL), 0, 100_000, of=Field("a name", (str, *NUMBER, bool)))


class BertConfig:
    """The contents of `config.json`: its keys are the attributes, and unknown keys are kept and written back.

    `fit_size`: width of the teacher that `fit_dense` projects onto, None = no projection; `fit_per_layer`: a projection
    for each hidden state (`fit_denses.N`, as in Huawei's second release); `pooled_relu`: a ReLU between pooler and
    classifier, which the reference has and Hugging Face does not; `quantized`: "int8" for the encoder's matrices.
    """

    DEFAULTS = {key: default for key, (default, _) in KEYS.items()}

    def __init__(self, /, **values):
        """Raises UserError for a value of the wrong kind, or a width that is not a multiple of the heads."""
        check(values, FIELDS, CONFIG_NAME)
        if hidden := [key for key in values if hasattr(type(self), key)]:
            raise UserError(f"{CONFIG_NAME}: {hidden[0]!r} is no key of a configuration")  # it would hide a method
        if names := values.get("id2label"):
            if not all(index.isdecimal() and len(index) < 9 for index in map(str, names)):
                told = f"id2label is {str(names)[:60]}, expected {FIELDS['id2label'].words}"
                raise UserError(f"{CONFIG_NAME}: {told}")
            values["id2label"] = {int(index): str(name) for index, name in names.items()}
            values["num_labels"] = len(values["id2label"])
        self.__dict__.update({**self.DEFAULTS, **values})
        if isinstance(task := values.get("task"), dict):
            size = self.num_labels
            each = Field(f"{size} numbers from 0 to 1", (list,), size, size, of=Field("a number", NUMBER, 0, 1))
            check(task, {"thresholds": each, "null_threshold": Field("a number", NUMBER)}, f"{CONFIG_NAME}: task")
        if self.pad_token_id >= self.vocab_size:
            raise UserError(f"{CONFIG_NAME}: pad_token_id is {self.pad_token_id}, vocab_size is {self.vocab_size}")
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise UserError(f"{CONFIG_NAME}: hidden_size {width} is not a multiple of num_attention_heads {heads}")

    @classmethod
    def from_pretrained(cls, folder, **overrides):
        """Read `folder`/config.json, or that file. Raises UserError: missing, malformed, another kind of model."""
        path = Path(folder)
        if path.is_dir():
            need("configuration", folder)
            path = path / CONFIG_NAME
        check_model_type(path)
        values = {**read_json(path), **overrides}
        if "id2label" in overrides:  # another head, with a task of its own
            values.pop("task", None)
        try:
            return cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{path.parent}/{error}") from None

    @classmethod
    def from_dict(cls, values):
        return cls(**values)

    def check_sizes(self, state, source):
        """Raise UserError where weights are not of these sizes, before a model of them takes time and memory."""
        for name, size in (
            ("embeddings.word_embeddings", self.vocab_size),
            ("embeddings.position_embeddings", self.max_position_embeddings),
            ("embeddings.token_type_embeddings", self.type_vocab_size),
            ("encoder.layer.0.intermediate.dense", self.intermediate_size),
            (f"encoder.layer.{self.num_hidden_layers - 1}.intermediate.dense", self.intermediate_size),
        ):
            key = f"bert.{name}.{'int8_weight' if self.quantized else 'weight'}"
            if key not in state:
                raise UserError(f"{source}: the weights lack {key}, which {CONFIG_NAME} asks for")
            check_shape(key, state[key], (size, self.hidden_size), source)

    def to_dict(self):
        return {key: value for key, value in self.__dict__.items() if value != self.DEFAULTS.get(key, self)}

    def save_pretrained(self, folder, architecture):
        """Write a config.json from which Hugging Face's AutoConfig picks the same `architecture`."""
        sizes = {key: getattr(self, key) for key in self.DEFAULTS if getattr(self, key) is not None}
        if self.__dict__.get("id2label"):
            sizes.pop("num_labels")  # Hugging Face derives it from id2label
        values = {**sizes, **self.to_dict(), "model_type": "bert", "architectures": [architecture]}
        if architecture != CLASSIFIER:
            values.pop("pooled_relu", None)
        if architecture in PRETRAINED:
            for key in ("task", "problem_type"):  # whoever adds a head decides
                values.pop(key, None)
        values["dtype"] = values["torch_dtype"] = "float32"  # the key's old and new name
        for key in ("finetuning_task", "label2id"):  # they describe the model that this one started from
            values.pop(key, None)
        if values.get("id2label"):
            values["label2id"] = {name: index for index, name in values["id2label"].items()}
        write_json(Path(folder) / CONFIG_NAME, values)
