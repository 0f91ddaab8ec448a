"""Model folders: reading, checking and writing their weights. Knows no model class.

A folder holds config.json, vocab.txt and the weights: pytorch_model.bin (ours, Huawei's) or model.safetensors
(Hugging Face), or either in shards, files that an index names.
"""

import logging
from pathlib import Path

import torch

from transformer.downloads import INDEX, MODEL_PARTS, need, shards
from transformer.files import UserError, atomic_write
from transformer.tensor_file import read_tensors

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "pytorch_model.bin"
SAFE_WEIGHTS_NAME = "model.safetensors"


def weights_file(folder):
    """The file of `folder` that holds the weights, or their index, or None. Ours comes first where both kinds are."""
    return next(filter(Path.is_file, (Path(folder) / name for name in MODEL_PARTS["weights"])), None)


def weights_files(folder):
    """The files of `folder` that hold the weights, more than one if they are in shards."""
    path = weights_file(folder)
    return [path.with_name(name) for name in shards(path)] if path.name.endswith(INDEX) else [path]


def load_state_dict(folder):
    """Read a checkpoint's tensors under today's key names. Raises UserError: missing, damaged, code inside, NaN."""
    need("weights", folder)
    state = {}
    for path in weights_files(folder):
        state |= {rename_key(key): value for key, value in read_tensors(path).items()}
    return {key: value for key, value in state.items() if not key.endswith("position_ids")}


def rename_key(key):
    """Today's name of a checkpoint key: old checkpoints have gamma and beta, DataParallel's prefix, or no `bert.`."""
    key = key.removeprefix("module.")
    key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{key}" if key.startswith(("embeddings.", "encoder.", "pooler.")) else key


def check_shape(key, value, wanted, source):
    """Raise UserError where a checkpoint's tensor has another shape than the model's."""
    if tuple(value.shape) != tuple(wanted):
        raise UserError(f"{source}: {key} has shape {tuple(value.shape)}, {CONFIG_NAME} asks for {tuple(wanted)}")


def read_state(model, state, source, fresh=()):
    """Copy a state dict into a model, and log the weights that it lacks and those that are not used. Raises UserError
    where shapes differ, or a part of the encoder is missing: initialized at random, it would produce nonsense. `fresh`:
    key prefixes of weights that it lacks on purpose. Returns the keys that it lacks, but for heads of pre-training."""
    own = model.state_dict()
    known = {key: value.to(own[key].dtype) for key, value in state.items() if key in own}
    for key, value in known.items():
        check_shape(key, value, own[key].shape, source)
    # The projection is of use to some trainings only, and made anew there; so are the heads of pre-training, which
    # augmentation looks for itself.
    elsewhere = ("fit_dense", "cls.")
    missing = model.load_state_dict(known, strict=False).missing_keys
    missing = [key for key in missing if not key.startswith((*elsewhere, *fresh))]
    unexpected = [key for key in state if key not in own and not key.startswith(elsewhere)]
    gaps = [key for key in missing if key.startswith(("bert.embeddings.", "bert.encoder."))]
    if gaps:
        more = f" and {len(gaps) - 1} more keys" if len(gaps) > 1 else ""
        raise UserError(f"{source}: the weights lack {gaps[0]}{more}, which {CONFIG_NAME} asks for")
    titles = "not in the checkpoint, drawn at random", "in the checkpoint, not needed here"
    for title, names in zip(titles, (missing, unexpected), strict=True):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            logging.info("%s: %s: %s%s", source, title, ", ".join(names[:4]), more)
    return missing


def save_weights(state, path):
    """Write a state dict atomically, its tensors copied to the CPU."""
    copies = {}  # by address in memory, so that tied tensors are written once from any device
    state = {key: copies.setdefault((value.data_ptr(), value.shape), value.cpu()) for key, value in state.items()}
    with atomic_write(path, "wb") as file:
        torch.save(state, file)


def check_vocabulary(config, tokenizer, folder):
    """Raise UserError when config.json and vocab.txt do not match; a config may round up, by less than 128."""
    size = len(tokenizer.vocab)
    if not size <= config.vocab_size < size + 128:
        raise UserError(f"{folder}: vocab.txt has {size} tokens, config.json says vocab_size {config.vocab_size}")


def check_positions(config, max_seq_length, who):
    """Raise UserError when sequences may be longer than a model's positions. `who`: the model, for the message."""
    if max_seq_length > config.max_position_embeddings:
        raise UserError(f"--max_seq_length {max_seq_length}: {who} has {config.max_position_embeddings} positions")


def check_float(config, folder):
    """Raise UserError where a model that is to be trained or exported is an int8 one."""
    if config.quantized:
        told = f"is {config.quantized}, for evaluation and predictions only"
        raise UserError(f"{folder}: {told}; give the model that it was exported from")


def label_names(config):
    """The class names in a config, in the order of the logits, or None where it has only LABEL_0, LABEL_1, ..."""
    names = config.__dict__.get("id2label")
    if not names or all(name.startswith("LABEL_") for name in names.values()):
        return None
    return [names[index] for index in sorted(names)]


def describe(model):
    """A model's layers, width, heads and parameters, for the log."""
    config, millions = model.config, model.num_parameters() / 1e6
    sizes = f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads"
    return f"{sizes}, {millions:.1f} M parameters"


def stored_outputs(folder, head):
    """The number of outputs of a head ("classifier", say) in a model folder's weights; 0 without the head."""
    return len(load_state_dict(folder).get(f"{head}.weight", ()))
