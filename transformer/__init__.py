"""The package the four scripts share: model, tokenizer, optimizer, losses, tasks, training loop, stage folders.

Importing it loads nothing. Names imported from the package itself have the signatures of the published TinyBERT code
(`published.py`); the modules keep this suite's own.
"""

import importlib

_NAMES = {
    "checkpoint": "CONFIG_NAME WEIGHTS_NAME",
    "downloads": "cached_path",
    "optimization": "BertAdam ConstantLR SCHEDULES WarmupConstantSchedule WarmupCosineSchedule WarmupLinearSchedule",
    "published": "BasicTokenizer BertConfig BertForMaskedLM BertForNextSentencePrediction BertForPreTraining BertModel "
    "BertTokenizer PYTORCH_PRETRAINED_BERT_CACHE TinyBertForPreTraining TinyBertForSequenceClassification "
    "WordpieceTokenizer",
    "tokenization": "load_vocab",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
