"""What the benchmarks measure against: the original algorithms, re-stated plainly, without any speed-up."""

import unicodedata

SPECIAL_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
MAX_CHARS_PER_WORD = 100


class SlowBertTokenizer:
    """The original BERT tokenizer's way: loops over characters in five passes, and nothing is remembered."""

    def __init__(self, vocab, do_lower_case=True):
        self.vocab = vocab
        self.do_lower_case = do_lower_case

    def ids(self, text):
        """Return the ids of `text`, without [CLS] and [SEP]."""
        return [self.vocab[piece] for piece in self.tokenize(text)]

    def tokenize(self, text):
        """Return the word pieces of `text`."""
        pieces = []
        for word in self._words(text):
            pieces.extend(self._pieces(word))
        return pieces

    def _words(self, text):
        words = []
        for word in _space_chinese(_clean(text)).split():
            if word in SPECIAL_TOKENS:
                words.append(word)
                continue
            if self.do_lower_case:
                word = _strip_accents(word.lower())
            words.extend(_split_at_punctuation(word))
        return " ".join(words).split()

    def _pieces(self, word):
        chars = list(word)
        if len(chars) > MAX_CHARS_PER_WORD:
            return ["[UNK]"]
        pieces, start = [], 0
        while start < len(chars):
            end, found = len(chars), None
            while start < end and found is None:
                piece = "".join(chars[start:end])
                if start > 0:
                    piece = "##" + piece
                if piece in self.vocab:
                    found = piece
                else:
                    end -= 1
            if found is None:
                return ["[UNK]"]
            pieces.append(found)
            start = end
        return pieces


def _clean(text):
    kept = []
    for char in text:
        if ord(char) in (0, 0xFFFD) or _is_control(char):
            continue
        kept.append(" " if _is_space(char) else char)
    return "".join(kept)


def _space_chinese(text):
    spaced = []
    for char in text:
        if _is_chinese(char):
            spaced.extend((" ", char, " "))
        else:
            spaced.append(char)
    return "".join(spaced)


def _strip_accents(word):
    kept = []
    for char in unicodedata.normalize("NFD", word):
        if unicodedata.category(char) != "Mn":
            kept.append(char)
    return "".join(kept)


def _split_at_punctuation(word):
    parts, inside = [], False
    for char in word:
        if _is_punctuation(char):
            parts.append([char])
            inside = False
            continue
        if not inside:
            parts.append([])
        inside = True
        parts[-1].append(char)
    return ["".join(part) for part in parts]


def _is_space(char):
    return char in (" ", "\t", "\n", "\r") or unicodedata.category(char) == "Zs"


def _is_control(char):
    return char not in ("\t", "\n", "\r") and unicodedata.category(char).startswith("C")


def _is_punctuation(char):
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def _is_chinese(char):
    code = ord(char)
    # Written out, as in the original: a loop over a table of ranges would be slower still.
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )
