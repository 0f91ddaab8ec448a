"""BERT's tokenizer in plain Python, with the same ids as Hugging Face's: an exact slow path behind a bounded cache."""

import logging
import re
import unicodedata
from itertools import chain
from pathlib import Path

from transformer.downloads import need
from transformer.files import UserError, atomic_write, make_folder, write_json
from transformer.json_file import NULL, Field, read_json, whole

VOCAB_NAME = "vocab.txt"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
FAST_TOKENIZER_NAME = "tokenizer.json"  # recent Hugging Face releases save this instead of vocab.txt
TOKENIZER_FILES = (VOCAB_NAME, FAST_TOKENIZER_NAME, TOKENIZER_CONFIG_NAME)
LARGEST = 1 << 24  # bytes of a vocabulary: three million tokens, far more than any BERT has
SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
FLAG = Field("true, false or null", (bool, NULL))
FIELDS = {"do_lower_case": FLAG, "strip_accents": FLAG, "tokenize_chinese_chars": FLAG}  # of tokenizer_config.json
FAST_VOCABULARY = Field("an id for each token", (dict,), of=whole())
_SPECIAL_TOKEN = re.compile(r"(\[(?:UNK|SEP|PAD|CLS|MASK)\])")
_NOT_ASCII = re.compile("[^\0-\x7f]{1,1000}")

# For use in a [] of a pattern. Extension E starts at 2B820 in Unicode but at 2B920 in Hugging Face, which we follow.
CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
CJK += "\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
_CJK_CHAR_OR_CHUNK = re.compile(f"[{CJK}]|[^ {CJK}]+")


def load_vocab(path):
    """Return `{token: id}` of a vocabulary file with one token per line. Raises UserError if it is not usable."""
    try:
        if (size := Path(path).stat().st_size) > LARGEST:
            raise UserError(f"{path}: {size:,} bytes; expected a vocabulary of {LARGEST:,} at most, one token a line")
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected one token a line") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; expected one token a line") from error
    vocab = {}
    # Not splitlines(): in the Chinese vocabulary the line separator U+2028 is a token.
    for token_id, token in enumerate(text.rstrip("\n").split("\n") if text.strip() else []):
        if token in vocab:
            first = vocab[token] + 1
            raise UserError(f"{path}, line {token_id + 1}: {token!r} is on line {first} too; expected every token once")
        vocab[token] = token_id
    return _checked(vocab, path)


def _load_fast_vocab(path):
    """Return `{token: id}` from a `tokenizer.json` of Hugging Face's Rust library."""
    model = read_json(path).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not FAST_VOCABULARY.fits(vocab) or set(vocab.values()) != set(range(len(vocab))):
        raise UserError(f"{path}: has no WordPiece vocabulary; expected model.vocab with the ids 0, 1, 2, ...")
    return _checked(vocab, path)


def _checked(vocab, path):
    if not vocab:
        raise UserError(f"{path}: is empty; expected one token a line")
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocab]
    if missing:
        raise UserError(f"{path}: lacks {' and '.join(missing)}; expected BERT's special tokens, each on its own line")
    return vocab


class _Cache(dict):
    """A dictionary of strings or character codes that computes missing values and empties itself when it is full."""

    max_entries = 1 << 17  # about 30 MB of English words
    max_key_length = 32  # longer strings (a URL, a Thai sentence) rarely occur again

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def __missing__(self, key):
        value = self.compute(key)
        if type(key) is int or len(key) <= self.max_key_length:
            if len(self) >= self.max_entries:
                self.clear()
            self[key] = value
        return value


class BasicTokenizer:
    """Splits text into words and punctuation marks; with `do_lower_case`, lower-cases and strips accents."""

    def __init__(self, do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True):
        self.do_lower_case = do_lower_case
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self._cleaning = _Cache(self._clean)  # tables for str.translate, whose keys are character codes
        self._folding = _Cache(self._fold)

    def tokenize(self, text):
        """Return the words of `text`; special tokens such as [MASK], in upper case only, stay whole."""
        if "[" not in text:
            return self._split(text)
        parts = enumerate(_SPECIAL_TOKEN.split(text))  # every second part is a special token
        return [word for index, part in parts for word in ([part] if index % 2 else self._split(part))]

    def _split(self, text):
        text = text.translate(self._cleaning)
        # The normal form also sorts neighbouring combining marks, in a time that grows with the square of their number.
        if self.strip_accents and not text.isascii():
            text = _NOT_ASCII.sub(lambda run: unicodedata.normalize("NFD", run[0]), text)
        return text.translate(self._folding).split()

    def _clean(self, code):
        char = chr(code)
        if char in "\t\n\r":
            return " "
        # Unassigned characters (Cn) stay, as in Hugging Face; Google's BERT deleted them.
        if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs"):
            return ""
        return f" {char} " if self.tokenize_chinese_chars and re.match(f"[{CJK}]", char) else char

    def _fold(self, code):
        char, category = chr(code), unicodedata.category(chr(code))
        if self.strip_accents and category == "Mn":
            return ""
        # For BERT every ASCII symbol is punctuation, even $ + < = > ^ ` | ~.
        if category[0] == "P" or (category[0] == "S" and char.isascii()):
            return f" {char} "
        # One character at a time, so that a capital sigma becomes the same letter at a word's end as elsewhere.
        return char.lower() if self.do_lower_case else char


class WordpieceTokenizer:
    """Splits a word into the vocabulary's pieces, the longest possible piece first."""

    unknown = "[UNK]"

    def __init__(self, vocab, max_chars_per_word=100):
        self.vocab = vocab
        self.max_chars_per_word = max_chars_per_word
        self._longest = max(map(len, vocab))

    def tokenize(self, word):
        """Return the pieces of a word, or only [UNK] when it is too long or a part of it has no piece."""
        if len(word) > self.max_chars_per_word:
            return [self.unknown]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = prefix + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return [self.unknown]
            pieces.append(piece)
            start = end
        return pieces


class BertTokenizer:
    """Text to word-piece ids, the same as Hugging Face's BertTokenizer. `vocab`: {token: id}; `strip_accents`: None =
    as `do_lower_case`."""

    def __init__(self, vocab, do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True):
        self.vocab = vocab
        self.ids_to_tokens = sorted(vocab, key=vocab.get)
        self.do_lower_case = do_lower_case
        self.strip_accents = strip_accents
        self.basic_tokenizer = BasicTokenizer(do_lower_case, strip_accents, tokenize_chinese_chars)
        self.wordpiece_tokenizer = WordpieceTokenizer(vocab)
        for name, token in SPECIAL_TOKENS.items():  # self.unk_token_id, sep_, pad_, cls_ and mask_token_id
            setattr(self, f"{name}_id", vocab[token])
        self._chunk_ids = _Cache(self._compute_chunk_ids)
        self._word_ids = _Cache(self._compute_word_ids)

    def __len__(self):
        return len(self.vocab)

    def ids(self, text):
        """Return the ids of `text`, without [CLS] and [SEP]."""
        if text.isascii() or not self.basic_tokenizer.tokenize_chinese_chars:
            # At plain spaces only: str.split() would split at characters that BERT deletes ("a\x0bb" is "ab").
            chunks = text.split(" ")
        else:
            # Chinese has no spaces, but each character is a word; characters occur again, sentences do not.
            chunks = _CJK_CHAR_OR_CHUNK.findall(text)
        return list(chain.from_iterable(map(self._chunk_ids.__getitem__, chunks)))

    def _compute_chunk_ids(self, chunk):
        words = self.basic_tokenizer.tokenize(chunk)
        return tuple(chain.from_iterable(map(self._word_ids.__getitem__, words)))

    def _compute_word_ids(self, word):
        return tuple(self.vocab[piece] for piece in self.wordpiece_tokenizer.tokenize(word))

    def tokenize(self, text):
        """Return the word pieces of `text`."""
        return self.convert_ids_to_tokens(self.ids(text))

    def words_and_ids(self, text):
        """Return `(word, tuple of its ids)` for each word and punctuation mark of `text`."""
        return [(word, self._word_ids[word]) for word in self.basic_tokenizer.tokenize(text)]

    def convert_tokens_to_ids(self, tokens):
        """Return the ids of word pieces; an unknown piece becomes [UNK]."""
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(self, ids):
        """Return the word pieces of `ids`."""
        return [self.ids_to_tokens[token_id] for token_id in ids]

    def encode_pair(self, ids_a, ids_b=None, max_length=None):
        """Return `(input_ids, token_type_ids)` of [CLS] a [SEP] or [CLS] a [SEP] b [SEP]. Beyond `max_length`, tokens
        are cut from the end of the longer one, or of `b` when both are equally long."""
        ids_b, end_b = ([], []) if ids_b is None else (ids_b, [self.sep_token_id])
        num_special = 2 + len(end_b)
        if max_length is not None:
            room = max_length - num_special
            if room < 0:
                raise UserError(f"a maximum length of {max_length} tokens; expected {num_special} or more")
            if len(ids_a) + len(ids_b) > room:
                ids_b = ids_b[: max(room // 2, room - len(ids_a))]
                ids_a = ids_a[: room - len(ids_b)]
        segment_a, segment_b = [self.cls_token_id, *ids_a, self.sep_token_id], [*ids_b, *end_b]
        return segment_a + segment_b, [0] * len(segment_a) + [1] * len(segment_b)

    @classmethod
    def from_pretrained(cls, folder, do_lower_case=None):
        """Load the tokenizer of a model folder, or of a vocabulary file alone. Raises UserError when there is no usable
        vocabulary.

        `do_lower_case`: None = as tokenizer_config.json says, or else cased if the vocabulary has upper-case pieces.
        """
        folder = Path(folder)
        if not folder.is_file():
            need("vocabulary", folder)
        fast_path, config_path = folder / FAST_TOKENIZER_NAME, folder / TOKENIZER_CONFIG_NAME
        if fast_path.exists() and not (folder / VOCAB_NAME).exists():
            vocab = _load_fast_vocab(fast_path)
        else:
            vocab = load_vocab(folder if folder.is_file() else folder / VOCAB_NAME)
        config = read_json(config_path, FIELDS) if config_path.exists() else {}
        follows = config.get("do_lower_case")
        if follows is None:  # special tokens do not count: an uncased vocabulary has [CLS], the Chinese one <S> and <T>
            follows = all(token == token.lower() for token in vocab if not re.fullmatch(r"\[.*\]|<.*>", token))
        if do_lower_case is None:
            do_lower_case = follows
        if do_lower_case != follows:
            names = {True: "uncased", False: "cased"}
            logging.warning("%s: the model is %s, read as %s as asked", folder, names[follows], names[do_lower_case])
        return cls(vocab, do_lower_case, config.get("strip_accents"), config.get("tokenize_chinese_chars", True))

    def save_pretrained(self, folder, max_length=512):
        """Write vocab.txt and tokenizer_config.json; with them Hugging Face's AutoTokenizer makes the same ids.
        `max_length`: the model's positions, at which Hugging Face cuts a text."""
        folder = make_folder(folder)
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.do_lower_case,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.basic_tokenizer.tokenize_chinese_chars,
            "model_max_length": max_length,
            **SPECIAL_TOKENS,
        }
        with atomic_write(folder / VOCAB_NAME) as file:
            file.writelines(f"{token}\n" for token in self.ids_to_tokens)
        write_json(folder / TOKENIZER_CONFIG_NAME, config)
