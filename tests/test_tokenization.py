import json
import pickle
import random
import time
import unicodedata
from pathlib import Path

import pytest

from transformer import tokenization
from transformer.file_utils import UserError
from transformer.tokenization import BasicTokenizer, BertTokenizer, WordpieceTokenizer, load_vocab

transformers = pytest.importorskip("transformers")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Where Python's Unicode tables and those of the Rust library under Hugging Face differ. Rust has the categories of
# Unicode 8, the normal forms of Unicode 9 and the lower-casing of Unicode 17. So it keeps newer combining marks, newer
# punctuation and newer format characters as parts of words, neither decomposes newer letters nor reorders newer marks,
# and lower-cases letters that an older Python does not know; 166D, 1734, 1885 and 1886 are old but changed their
# category after Unicode 8. This is the union over Unicode 13 (Python 3.10) to 18.
NEWER_THAN_RUST_OR_PYTHON = """
05C8-05C9 061D 07FD 0890-0891 0897-089F 08CA-08E2 09FD-09FE 0A76 0AFA-0AFF 0B53-0B55 0C04 0C3C 0C77 0C84 0D00
0D3B-0D3C 0D81 0EBA 0ECE 166D 1715 1734 180F 1885-1886 1ABF-1AF0 1B4E-1B4F 1B7D-1B7F 1C89 1DF6-1DFB 2C2F
2E43-2E4F 2E52-2E5D 2E60-2E63 A7C0 A7CB-A7CC A7CE A7D0 A7D2 A7D4 A7D6 A7D8 A7DA A7DC A82C A8C5 A8FF A9BD
10570-1057A 1057C-1058A 1058C-10592 10594-10595 105C9 105E4 10D24-10D27 10D50-10D65 10D69-10D6E 10EAB-10EAD
10ECB-10ED0 10EF0-10EFF 10F46-10F50 10F55-10F59 10F82-10F89 11070 11073-11074 110C2 110CD 111C9 111CF 1123E
11241 1133B 11383 11385 1138E 11391 113BB-113C0 113C5 113C7-113C8 113CE-113D0 113D2 113D4-113D5 113D7-113D8
113E1-113E2 11438-1143F 11442-11444 11446 1144B-1144F 1145A-1145B 1145D-1145E 11660-1166C 116B9 1171E
1182F-11837 11839-1183B 11938 1193B-1193E 11943-11946 119D4-119D7 119DA-119DB 119E0 119E2 11A01-11A0A
11A33-11A38 11A3B-11A47 11A51-11A56 11A59-11A5B 11A8A-11A96 11A98-11A9C 11A9E-11AA2 11B00-11B09 11B60
11B62-11B64 11B66 11BE1 11C30-11C36 11C38-11C3D 11C3F 11C41-11C45 11C70-11C71 11C92-11CA7 11CAA-11CB0
11CB2-11CB3 11CB5-11CB6 11D31-11D36 11D3A 11D3C-11D3D 11D3F-11D45 11D47 11D90-11D91 11D95 11D97 11DF0
11EF3-11EF4 11EF7-11EF8 11F00-11F01 11F36-11F3A 11F40-11F4F 11F5A 11FFF 12FF1-12FF2 13430-13440 13447-13455
1611E-16129 1612D-1612F 16D68-16D6A 16D6D-16D6F 16E97-16E9A 16EA0-16EB8 16F4F 16FE2 16FE4 16FF0-16FF1
1CF00-1CF2D 1CF30-1CF46 1D127-1D128 1D250-1D252 1D25B-1D25C 1D25F 1D280-1D281 1E000-1E006 1E008-1E018
1E01B-1E021 1E023-1E024 1E026-1E02A 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF 1E5FF 1E6E3
1E6E6 1E6EE-1E6EF 1E6F5 1E944-1E94A 1E95E-1E95F
"""


def excluded_characters():
    """Return the characters of NEWER_THAN_RUST_OR_PYTHON, as a set."""
    excluded = set()
    for code_range in NEWER_THAN_RUST_OR_PYTHON.split():
        first, _, last = code_range.partition("-")
        excluded |= set(map(chr, range(int(first, 16), int(last or first, 16) + 1)))
    return excluded


def comparable_characters():
    """Return every character on which both sides must agree; the Rust library takes no surrogates."""
    excluded = excluded_characters()
    codes = [*range(0xD800), *range(0xE000, 0x110000)]
    return [char for char in map(chr, codes) if char not in excluded]


def small_vocab():
    """Return a vocabulary with two-letter pieces, some letters of many scripts and no digit 7."""
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ012345689"]
    for first, last in ("Àſ", "Ας", "\u03c3ω", "\u1100\u11c2", "\u0620\u066e"):
        letters += map(chr, range(ord(first), ord(last) + 1))
    pieces = [*letters, *"中文国語,.!?-'[]()$+<|，。—", "ab", "abc", "the", "mask", "Mask", "MASK", "🙂", "\u0301"]
    suffixes = ["##" + piece for piece in (*letters, "bc", "\u0301")]
    return {token: token_id for token_id, token in enumerate([*SPECIAL, *pieces, *suffixes])}


def write_vocab(folder, vocab, **config):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in vocab), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def hugging_face(folder, vocab, **config):
    """Return Hugging Face's tokenizer for the same vocabulary and settings."""
    write_vocab(folder, vocab, tokenizer_class="BertTokenizer", **config)
    return transformers.BertTokenizerFast.from_pretrained(folder)


def words_of(hf, text):
    """Return what the Rust library sees as the words of a text without special tokens."""
    backend = hf.backend_tokenizer
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]


def mixed_texts(count, rng):
    """Yield strings that mix scripts, marks, controls, spaces, special tokens and very long words."""
    pools = [
        list("abcthe MASK 0123456789 ,.!?-'[]()$+<|"),
        [*SPECIAL, "[mask]", "[MASK", "MASK]", "[ MASK ]", "[[SEP]]", "a[MASK]b", "[MA\u200bSK]", "[unused1]", " "],
        list("éÉñÑüÜçÅåøØßẞŁłđﬁǅÇ") + ["e\u0301", "E\u0323\u0302", "\u0301", "\u0301a", "\u212b", "\u1fef"],
        list("中文国語漢字，。、「」㐀𠀀豈\u2f800かなカナ가각힣") + ["\u1100\u1161\u11a8", "\U0002b820", "\U0002b920"],
        list("ΣσςΑΟΔΥΣΣ Σ") + ["ΟΔΥΣΣΕΥΣ", "ΑΣ.", "Σ\u0301", "ΑΣ\u0301", "İstanbul", "ıI", "I\u0307"],
        ["👩\u200d👩\u200d👧", "🙂", "❤\ufe0f", "🇫🇷", "👍🏽", "\u20e3", " "],
        list("\0\x01\x0b\x0c\x1b\x1c\x1d\x1e\x1f\x7f\x85\xad\u180e\u200b\u200e\ufeffab"),
        list("\t\n\r \xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000ab"),
        list("مرحبا بالعالم،؟") + ["\u064e", "\u0651", "हिन्दी", "ไทย", "עִבְרִית"],
        ["\ue000", "\U000f0000", "\U0010fffd", "\u0378", "\U000e0080", "\uffff", "\U0010ffff", "\ufffd", "x"],
        ["\U0001d165", "\U0001d16d", "\u302e", "\u1b44", "\ufe0f", "\u0334", "\u0345", "\u3099"],  # marks out of order
        ["a" * 99, "b" * 100, "c" * 101, "é" * 100, "e\u0301" * 99, "e\u0301" * 101, "\u200b" * 50, " ", "ab"],
    ]
    for _ in range(count):
        chosen = rng.choices(pools, k=rng.randint(1, 4))
        yield "".join(rng.choice(rng.choice(chosen)) for _ in range(rng.randint(1, 25)))


@pytest.mark.parametrize(
    "config",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        pytest.param({"do_lower_case": False, "strip_accents": True}, marks=pytest.mark.slow),
        pytest.param({"do_lower_case": True, "tokenize_chinese_chars": False}, marks=pytest.mark.slow),
    ],
)
def test_tokens_of_mixed_unicode_are_those_of_hugging_face(tmp_path, config):
    vocab = small_vocab()
    hf, ours = hugging_face(tmp_path, vocab, **config), BertTokenizer(vocab, **config)
    for text in mixed_texts(2500, random.Random(13)):
        assert ours.tokenize(text) == hf.tokenize(text), ascii(text)
        assert ours.ids(text) == ours.convert_tokens_to_ids(hf.tokenize(text)), ascii(text)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_words_of_random_code_points_are_those_of_hugging_face(tmp_path, do_lower_case):
    hf, ours = hugging_face(tmp_path, small_vocab(), do_lower_case=do_lower_case), BasicTokenizer(do_lower_case)
    rng, characters = random.Random(7), comparable_characters()
    marks = [char for char in characters if unicodedata.category(char)[0] == "M"]
    # Accent stripping keeps these, so their canonical order shows.
    kept = [char for char in marks if unicodedata.combining(char) and unicodedata.category(char) != "Mn"]
    for _ in range(4000):
        pool = rng.choice([characters, marks, marks + characters[:3000], [*kept, *kept, *rng.sample(marks, 30)]])
        text = "".join(rng.choices(pool, k=rng.randint(1, 20)))
        assert ours.tokenize(text) == words_of(hf, text), ascii(text)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_every_code_point_alone_and_between_letters_is_treated_as_in_hugging_face(tmp_path, do_lower_case, every):
    hf, ours = hugging_face(tmp_path, small_vocab(), do_lower_case=do_lower_case), BasicTokenizer(do_lower_case)
    characters = comparable_characters()
    if not every:  # by default most scripts, and of Chinese, Korean and unassigned ones every eleventh
        characters = [*characters[:0x2E00], *characters[0x2E00::11]]
    texts = [f"{char} a{char}b " for char in characters]
    differing = []
    for start in range(0, len(texts), 500):
        batch = texts[start : start + 500]
        if ours.tokenize("".join(batch)) != words_of(hf, "".join(batch)):
            differing += [ascii(text) for text in batch if ours.tokenize(text) != words_of(hf, text)]
    assert not differing


def test_only_characters_newer_than_the_rust_tables_are_excluded():
    in_unicode_3 = {char for char in excluded_characters() if unicodedata.ucd_3_2_0.category(char) != "Cn"}
    assert in_unicode_3 == set("\u166d\u1734\u1885\u1886")
    assert len(excluded_characters()) == 813


@pytest.mark.skipif(not (SHARED_DATA / "SST-2" / "train.tsv").exists(), reason="the real SST-2 is not here")
@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.slow
def test_ids_of_all_sst2_lines_are_those_of_hugging_face(tmp_path, do_lower_case):
    vocab = load_vocab(SHARED_DATA / "vocab_bert_uncased.txt")
    lines = (SHARED_DATA / "SST-2" / "train.tsv").read_text(encoding="utf-8").split("\n")
    hf, ours = hugging_face(tmp_path, vocab, do_lower_case=do_lower_case), BertTokenizer(vocab, do_lower_case)
    encodings = hf.backend_tokenizer.encode_batch(lines, add_special_tokens=False)
    assert [ours.ids(line) for line in lines] == [encoding.ids for encoding in encodings]


@pytest.mark.skipif(not (SHARED_DATA / "vocab_21128.txt").exists(), reason="the Chinese vocabulary is not here")
def test_tokens_with_a_chinese_vocabulary_are_those_of_hugging_face(tmp_path):
    vocab = load_vocab(SHARED_DATA / "vocab_21128.txt")
    hf, ours = hugging_face(tmp_path, vocab, do_lower_case=True), BertTokenizer(vocab)
    letters = sorted({token.removeprefix("##") for token in vocab})
    rng = random.Random(11)
    for _ in range(2000):
        text = "".join(rng.choices(letters, k=rng.randint(1, 40)))
        assert ours.ids(text) == hf(text, add_special_tokens=False)["input_ids"], ascii(text)


def test_a_run_of_combining_marks_takes_time_in_proportion_and_marks_are_sorted_as_in_the_normal_form():
    basic = BasicTokenizer()
    started = time.process_time()
    assert basic.tokenize("a" + "\u0301\u0316" * 30_000 + "b") == ["ab"]
    assert time.process_time() - started < 1.5  # in one piece 4 s
    text = "\uac00\u302e\u0301\u302a\u1b44 é\u0316e" * 200
    whole = unicodedata.normalize("NFD", text.translate(basic._cleaning)).translate(basic._folding).split()
    assert basic.tokenize(text) == whole


def test_a_vocabulary_of_more_than_any_bert_s_is_refused_by_its_size(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("[PAD]\n" * 9)
    monkeypatch.setattr(tokenization, "LARGEST", 53)
    with pytest.raises(UserError, match=r"vocab\.txt: 54 bytes; expected a vocabulary of 53 at most"):
        load_vocab(tmp_path / "vocab.txt")


def test_special_tokens_in_the_text_stay_whole_in_this_case_only():
    words = BasicTokenizer(do_lower_case=True).tokenize("The [MASK]x[SEP] [mask] [CLS")
    assert words == ["the", "[MASK]", "x", "[SEP]", "[", "mask", "]", "[", "cls"]


def test_a_control_character_joins_what_a_space_would_separate():
    tokenizer = BertTokenizer(small_vocab())
    assert tokenizer.tokenize("a\x1cb") == tokenizer.tokenize("a\x85b") == ["ab"]
    assert tokenizer.tokenize("a\tb") == tokenizer.tokenize("a\u3000b") == ["a", "b"]


def test_the_longest_piece_wins_and_a_word_without_pieces_is_unknown():
    wordpiece = WordpieceTokenizer(small_vocab())
    assert wordpiece.tokenize("abcab") == ["abc", "##a", "##b"]
    assert wordpiece.tokenize("ab7") == ["[UNK]"]
    assert wordpiece.tokenize("a" * 100) == ["a"] + ["##a"] * 99
    assert wordpiece.tokenize("a" * 101) == ["[UNK]"]
    assert WordpieceTokenizer(small_vocab(), max_chars_per_word=2).tokenize("abc") == ["[UNK]"]


def test_words_and_ids_join_to_the_ids_of_the_text():
    tokenizer = BertTokenizer(small_vocab())
    text = "Théab7, abcd[MASK]中文"
    words = tokenizer.words_and_ids(text)
    assert [word for word, _ in words] == ["theab7", ",", "abcd", "[MASK]", "中", "文"]
    assert [token_id for _, ids in words for token_id in ids] == tokenizer.ids(text)
    assert words[0][1] == (tokenizer.unk_token_id,)
    assert words[3][1] == (tokenizer.mask_token_id,)


def test_tokens_and_ids_convert_into_each_other():
    tokenizer = BertTokenizer(small_vocab())
    tokens = tokenizer.tokenize("The abcd, [PAD]")
    assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(tokens)) == tokens
    assert tokenizer.convert_tokens_to_ids(["abc", "no such piece"]) == [tokenizer.vocab["abc"], tokenizer.unk_token_id]
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert tokenizer.convert_ids_to_tokens([*special, tokenizer.mask_token_id]) == SPECIAL


def test_the_cache_stays_bounded_and_changes_no_id(monkeypatch):
    texts = list(mixed_texts(200, random.Random(5)))
    expected = [BertTokenizer(small_vocab()).ids(text) for text in texts]
    monkeypatch.setattr(tokenization._Cache, "max_entries", 5)
    tokenizer = BertTokenizer(small_vocab())
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.ids(text) == ids == tokenizer.ids(text)
        assert len(tokenizer._chunk_ids) <= 5 and len(tokenizer._word_ids) <= 5
    assert tokenizer._chunk_ids


def test_long_strings_are_not_remembered():
    tokenizer = BertTokenizer(small_vocab())
    tokenizer.ids("the " + "ab" * 17)
    assert list(tokenizer._chunk_ids) == ["the"] and list(tokenizer._word_ids) == ["the"]


@pytest.mark.parametrize(
    "tokenize_chinese_chars, chunks", [(True, ["the", "中", "文", "，abc", "豈", "\U00020000"]), (False, None)]
)
def test_chinese_characters_are_remembered_one_by_one_where_each_is_a_word(tokenize_chinese_chars, chunks):
    text = "the 中文，abc豈\U00020000"
    tokenizer = BertTokenizer(small_vocab(), tokenize_chinese_chars=tokenize_chinese_chars)
    ids = tokenizer.ids(text)
    assert list(tokenizer._chunk_ids) == (chunks or text.split())
    assert ids == [token_id for _, word_ids in tokenizer.words_and_ids(text) for token_id in word_ids]


def test_changing_a_result_does_not_change_the_cache():
    tokenizer = BertTokenizer(small_vocab())
    tokenizer.ids("abcd").append(-1)
    assert -1 not in tokenizer.ids("abcd")


def test_a_tokenizer_survives_the_trip_to_another_process():
    tokenizer = BertTokenizer(small_vocab(), do_lower_case=False)
    ids = tokenizer.ids("The abc 中文")
    assert pickle.loads(pickle.dumps(tokenizer)).ids("The abc 中文 É") == [*ids, *tokenizer.ids("É")]


def popped_pair(ids_a, ids_b, room):
    ids_a, ids_b = list(ids_a), list(ids_b)
    while len(ids_a) + len(ids_b) > room:
        (ids_a if len(ids_a) > len(ids_b) else ids_b).pop()
    return ids_a, ids_b


def test_a_pair_is_cut_like_popping_one_token_at_a_time():
    tokenizer = BertTokenizer(small_vocab())
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for len_a in range(9):
        for len_b in range(9):
            for max_length in range(3, 20):
                ids_a, ids_b = range(100, 100 + len_a), range(200, 200 + len_b)
                kept_a, kept_b = popped_pair(ids_a, ids_b, max_length - 3)
                input_ids, token_type_ids = tokenizer.encode_pair(ids_a, ids_b, max_length)
                assert input_ids == [cls, *kept_a, sep, *kept_b, sep]
                assert token_type_ids == [0] * (len(kept_a) + 2) + [1] * (len(kept_b) + 1)


def test_a_single_text_and_a_pair_without_maximum_are_encoded_as_in_hugging_face(tmp_path):
    hf, tokenizer = hugging_face(tmp_path, small_vocab(), do_lower_case=True), BertTokenizer(small_vocab())
    text_a, text_b = "the abcd, e", "中文 abc"
    ids_a, ids_b = tokenizer.ids(text_a), tokenizer.ids(text_b)
    for encoded, theirs in (
        (tokenizer.encode_pair(ids_a), hf(text_a)),
        (tokenizer.encode_pair(ids_a, max_length=4), hf(text_a, truncation=True, max_length=4)),
        (tokenizer.encode_pair(ids_a, ids_b), hf(text_a, text_b)),
    ):
        assert encoded == (theirs["input_ids"], theirs["token_type_ids"])


def test_a_maximum_without_room_for_the_special_tokens_is_an_error():
    tokenizer = BertTokenizer(small_vocab())
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode_pair([7], [8], 3)[0]) == ["[CLS]", "[SEP]", "[SEP]"]
    with pytest.raises(UserError, match="maximum length of 2 tokens; expected 3"):
        tokenizer.encode_pair([7], [8], 2)
    with pytest.raises(UserError, match="expected 2"):
        tokenizer.encode_pair([7], None, 1)


@pytest.mark.parametrize(
    "config",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "tokenize_chinese_chars": False},
    ],
)
def test_a_saved_tokenizer_gives_the_same_ids_in_auto_tokenizer_and_here(tmp_path, config):
    tokenizer = BertTokenizer(small_vocab(), **config)
    tokenizer.save_pretrained(tmp_path / "model", 131)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["tokenizer_config.json", "vocab.txt"]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    again = BertTokenizer.from_pretrained(tmp_path / "model")
    assert auto.model_max_length == 131
    assert again.vocab == tokenizer.vocab
    for text in mixed_texts(100, random.Random(3)):
        assert auto(text, add_special_tokens=False)["input_ids"] == again.ids(text) == tokenizer.ids(text), ascii(text)


def test_a_folder_saved_by_hugging_face_loads_with_the_same_ids(tmp_path):
    hf = hugging_face(tmp_path / "source", small_vocab(), do_lower_case=False, strip_accents=True)
    hf.save_pretrained(tmp_path / "saved")
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "saved")
    for text in mixed_texts(100, random.Random(2)):
        assert hf(text, add_special_tokens=False)["input_ids"] == tokenizer.ids(text), ascii(text)


def test_a_tokenizer_json_without_vocab_txt_is_enough(tmp_path):
    hf = hugging_face(tmp_path / "source", small_vocab(), do_lower_case=True)
    hf.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert BertTokenizer.from_pretrained(tmp_path, do_lower_case=True).vocab == small_vocab()
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 3}}}')
    with pytest.raises(UserError, match="tokenizer.json: has no WordPiece vocabulary"):
        BertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "piece, config, do_lower_case",
    [
        ("abc", {}, True),
        ("Abc", {}, False),
        ("É", {}, False),
        ("[Unused1]", {}, True),
        ("<S>", {}, True),
        ("Abc", {"do_lower_case": True}, True),
        ("abc", {"do_lower_case": False}, False),
        ("Abc", {"do_lower_case": None, "strip_accents": None}, False),
    ],
)
def test_the_casing_follows_the_folder(tmp_path, piece, config, do_lower_case):
    tokenizer = BertTokenizer.from_pretrained(write_vocab(tmp_path, [*SPECIAL, piece], **config))
    assert tokenizer.do_lower_case is do_lower_case
    assert tokenizer.basic_tokenizer.tokenize("Àb") == (["ab"] if do_lower_case else ["Àb"])


def test_a_casing_against_the_folder_is_obeyed_with_one_warning(tmp_path, caplog):
    folder = write_vocab(tmp_path, [*SPECIAL, "The", "the"])
    assert BertTokenizer.from_pretrained(folder, do_lower_case=False).tokenize("The") == ["The"]
    assert not caplog.records
    assert BertTokenizer.from_pretrained(folder, do_lower_case=True).tokenize("The") == ["the"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the model is cased, read as uncased" in caplog.text


def test_a_vocabulary_keeps_unusual_tokens_and_line_ends(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL, "\u2028", "a\u3000", "b", ""]).encode())
    assert list(load_vocab(path)) == [*SPECIAL, "\u2028", "a\u3000", "b"]
    with pytest.raises(UserError, match="vocab.txt: cannot be read.*expected one token a line"):
        load_vocab(tmp_path / "absent" / "vocab.txt")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "vocab.txt: is empty"),
        (b"\n\n", "vocab.txt: is empty"),
        (b"[PAD]\n[UNK]\n[CLS]\na\n", r"vocab.txt: lacks \[SEP\] and \[MASK\]"),
        (b"[PAD]\n[UNK]\na\nb\na\n", "vocab.txt, line 5: 'a' is on line 3 too"),
        (b"[PAD]\n\xff\n", "vocab.txt, line 2: not UTF-8"),
    ],
)
def test_a_bad_vocabulary_is_an_error_that_names_file_and_line(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        BertTokenizer.from_pretrained(tmp_path)
    assert "expected" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message", [("{\n  3", "tokenizer_config.json, line 2"), ("[1]", "expected one JSON object")]
)
def test_a_bad_tokenizer_config_is_an_error(tmp_path, content, message):
    (write_vocab(tmp_path, SPECIAL) / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        BertTokenizer.from_pretrained(tmp_path)
