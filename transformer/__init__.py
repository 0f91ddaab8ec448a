"""The package the four scripts share: model, tokenizer, optimizer, losses, tasks, training loop, stage folders.

Importing it loads nothing. Names imported from the package itself have the signatures of the published TinyBERT code
(`published.py`); the modules keep this suite's own.
"""

import importlib

_HOMES = dict.fromkeys(("CONFIG_NAME", "WEIGHTS_NAME"), "checkpoint")
_HOMES |= {"cached_path": "downloads", "load_vocab": "tokenization", "BertAdam": "optimization"}
_HOMES |= dict.fromkeys(
    (
        "BasicTokenizer",
        "BertConfig",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "BertModel",
        "BertTokenizer",
        "ConstantLR",
        "PYTORCH_PRETRAINED_BERT_CACHE",
        "SCHEDULES",
        "TinyBertForPreTraining",
        "TinyBertForSequenceClassification",
        "WarmupConstantSchedule",
        "WarmupCosineSchedule",
        "WarmupLinearSchedule",
        "WordpieceTokenizer",
    ),
    "published",
)
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
