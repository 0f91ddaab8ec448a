"""A student's vocabulary where it is smaller than its teacher's: the word pieces that its task uses."""

import logging
import re
from pathlib import Path

import numpy as np
from torch import nn

from transformer.files import UserError
from transformer.tokenization import CJK, FAST_TOKENIZER_NAME, SPECIAL_TOKENS, VOCAB_NAME, BertTokenizer


def student_tokenizer(folder, tokenizer):
    """The tokenizer of the student in `folder`: its teacher's, given here, or its own if that has fewer pieces. Raises
    UserError unless these are the teacher's, in the teacher's order, and both models read capitals alike."""
    if not any((Path(folder) / name).is_file() for name in (VOCAB_NAME, FAST_TOKENIZER_NAME)):
        return tokenizer
    own = BertTokenizer.from_pretrained(folder)
    if own.vocab == tokenizer.vocab:
        return tokenizer
    if own.ids_to_tokens != [piece for piece in tokenizer.ids_to_tokens if piece in own.vocab]:
        told = "differs from the teacher's vocabulary; expected the same pieces, or some of them in the same order"
        raise UserError(f"{folder}/{VOCAB_NAME}: {told}")
    if casing(own) != casing(tokenizer):
        found, expected = (", ".join(f"{name} {value}" for name, value in casing(each)) for each in (own, tokenizer))
        told = f"reads text with {found}; expected {expected}, as the teacher does"
        raise UserError(f"{folder}: {told}; --do_lower_case goes to both steps or to neither")
    return own


def casing(tokenizer):
    """What decides how text becomes words, apart from the vocabulary."""
    basic = tokenizer.basic_tokenizer
    return [(name, getattr(basic, name)) for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")]


def reduce(student, tokenizer, teacher_tokenizer, ids, asked):
    """Cut a student, in place, to the word pieces that its training text uses. Returns its new tokenizer.

    Special tokens and single characters stay, so that every word still has pieces. Args: ids: the text as the teacher
    reads it; asked: --student_vocab, "task" or the number of pieces to keep, the most frequent first. Raises UserError
    for a number below that of special tokens and single characters.
    """
    counts = np.bincount(ids, minlength=len(teacher_tokenizer)).tolist()
    counts = {piece: counts[index] for piece, index in teacher_tokenizer.vocab.items()}
    # A Chinese character is a word of its own, so that its form inside a word is never used.
    inside = f"##[^{CJK}]" if tokenizer.basic_tokenizer.tokenize_chinese_chars else "##."
    single = re.compile(f".|{inside}", re.DOTALL)
    always = {piece for piece in tokenizer.vocab if single.fullmatch(piece)} | set(SPECIAL_TOKENS.values())
    used = [piece for piece in tokenizer.vocab if counts[piece] and piece not in always]
    room = len(used) if asked == "task" else int(asked) - len(always)
    if room < 0:
        told = f"the {len(always)} special tokens and single characters, of which every word can be made, stay"
        raise UserError(f"--student_vocab {asked}: {told}; expected {len(always)} or more")
    kept = always.union(sorted(used, key=counts.get, reverse=True)[:room])
    pieces = [piece for piece in tokenizer.ids_to_tokens if piece in kept]
    smaller = BertTokenizer({piece: index for index, piece in enumerate(pieces)}, **dict(casing(tokenizer)))
    told = "student's vocabulary: %d of %d pieces, among them %d of the %d longer ones of its training text"
    logging.info(told, len(smaller), len(tokenizer), len(kept) - len(always), len(used))
    keep_pieces(student, tokenizer, smaller)
    return smaller


def keep_pieces(model, tokenizer, smaller):
    """Cut a model's word embeddings (V, D), in place, to the pieces of the tokenizer `smaller`."""
    embeddings, config = model.bert.embeddings, model.config
    rows = embeddings.word_embeddings.weight.detach()[tokenizer.convert_tokens_to_ids(smaller.ids_to_tokens)]
    embeddings.word_embeddings = nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=smaller.pad_token_id)
    config.vocab_size, config.pad_token_id = len(smaller), smaller.pad_token_id
