"""A model's config.json."""

import math
from pathlib import Path

import torch.nn.functional as F

from transformer.checkpoint import CONFIG_NAME
from transformer.downloads import check_model_type, need
from transformer.files import UserError, read_json, write_json

CLASSIFIER = "BertForSequenceClassification"  # the architecture that `pooled_relu` is about
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class BertConfig:
    """The contents of `config.json`: its keys are the attributes, and unknown keys are kept and written back.

    `fit_size`: width of the teacher that `fit_dense` projects onto, None = no projection; `fit_per_layer`: a projection
    for each hidden state (`fit_denses.N`, as in Huawei's second release); `pooled_relu`: a ReLU between pooler and
    classifier, which the reference has and Hugging Face does not.
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

    def __init__(self, **values):
        """Raises UserError for a value of the wrong kind, or a width that is not a multiple of the heads."""
        if names := values.get("id2label"):
            try:
                values["id2label"] = {int(index): str(name) for index, name in names.items()}
            except (AttributeError, ValueError):
                raise UserError(f"{CONFIG_NAME}: id2label is {names!r}, expected a name for each number") from None
            values["num_labels"] = len(values["id2label"])
        self.__dict__.update({**self.DEFAULTS, **values})

        def is_number(value, limit=math.inf, kind=int | float):
            return isinstance(value, kind) and 0 <= value < limit

        sizes = [key for key, default in self.DEFAULTS.items() if type(default) is int and default > 0]
        dropouts = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
        known = sorted(ACTIVATIONS)
        for keys, fits, expected in (
            (sizes, lambda value: type(value) is int and value > 0, "a positive whole number"),
            (dropouts, lambda value: is_number(value, 1), "a number from 0 up to 1"),
            (["initializer_range", "layer_norm_eps"], is_number, "a number that is not negative"),
            (["pad_token_id"], lambda value: is_number(value, self.vocab_size, int), "a token's number"),
            (["hidden_act"], known.__contains__, f"one of {', '.join(known)}"),
        ):
            for key in keys:
                if not fits(value := getattr(self, key)):
                    raise UserError(f"{CONFIG_NAME}: {key} is {value!r}, expected {expected}")
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
        try:
            return cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{path.parent}/{error}") from None

    @classmethod
    def from_dict(cls, values):
        return cls(**values)

    def to_dict(self):
        return {key: value for key, value in self.__dict__.items() if value != self.DEFAULTS.get(key, self)}

    def save_pretrained(self, folder, architecture):
        """Write a config.json from which Hugging Face's AutoConfig picks the same `architecture`."""
        sizes = {key: getattr(self, key) for key in self.DEFAULTS if getattr(self, key) is not None}
        if self.__dict__.get("id2label"):
            sizes.pop("num_labels")  # Hugging Face derives it from id2label
        values = {**sizes, **self.to_dict(), "model_type": "bert", "architectures": [architecture]}
        if architecture != CLASSIFIER:
            for key in ("pooled_relu", "task"):  # whoever adds a classifier decides
                values.pop(key, None)
        values["dtype"] = values["torch_dtype"] = "float32"  # the key's old and new name
        for key in ("finetuning_task", "label2id"):  # they describe the model that this one started from
            values.pop(key, None)
        if values.get("id2label"):
            values["label2id"] = {name: index for index, name in values["id2label"].items()}
        write_json(Path(folder) / CONFIG_NAME, values)
