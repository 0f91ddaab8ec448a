"""Candidates for words: from the masked LM, ranked as in exact arithmetic, and from word vectors; Chinese words."""

import copy
import random

import pytest
import torch
from tiny import SPECIAL, VOCABULARY, call_script, make_glove, make_teacher, make_tokenizer

from data_augmentation import load_masked_lm
from transformer import proposals
from transformer.modeling import BertConfig, BertForMaskedLM
from transformer.proposals import STOP_WORDS, CandidateProposer, states_at
from transformer.tokenization import BertTokenizer
from transformer.training import Launch
from transformer.vectors import WordVectors, is_special

CPU = Launch(torch.device("cpu"), 0, 1, torch.float32)
WORDS = [word for word in VOCABULARY[5:18] if word not in STOP_WORDS]  # of one piece each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proposals")
    make_teacher(folder / "teacher")
    make_glove(folder / "glove.txt")
    return folder


@pytest.fixture(scope="module")
def proposer(folder):
    return CandidateProposer(*load_masked_lm(folder / "teacher", CPU.device), WordVectors(folder / "glove.txt"), 6, CPU)


def test_candidates_are_words_of_the_vocabulary_other_than_the_word(proposer):
    words, candidates = proposer.candidates({"the film is good ."})["the film is good ."]
    assert set(candidates) == {1, 3}  # "the" and "is" are stop words, "." is no word
    vocabulary = set(make_tokenizer().vocab)
    for index, proposed in candidates.items():
        assert 0 < len(proposed) <= 6
        assert set(proposed) <= vocabulary and words[index] not in proposed
        assert not any(token.startswith("##") or is_special(token) for token in proposed)


def test_of_a_very_long_text_the_first_words_get_candidates_those_of_the_whole_text(folder, monkeypatch, caplog):
    make = CandidateProposer(*load_masked_lm(folder / "teacher", CPU.device), WordVectors(folder / "glove.txt"), 6, CPU)
    text = " ".join(["the film is good and films fine ,"] * 9)
    words, whole = make.candidates({text})[text]
    assert max(whole) == 70
    monkeypatch.setattr(proposals, "MOST_WORDS", 38)
    make.prepare([text, "a film", text])
    assert make.candidates({text})[text] == (words, {index: found for index, found in whole.items() if index < 38})
    told = "some texts have more than 38 words: only the first 38 are replaced"
    assert [each.message for each in caplog.records if each.levelname == "WARNING"] == [told]


def test_a_word_of_several_pieces_gets_its_glove_neighbours(proposer):
    _, candidates = proposer.candidates({"the films"})["the films"]
    assert candidates == {1: proposer.vectors.neighbours(["films"], 6)["films"]}


def test_words_are_looked_up_as_written_then_in_lower_case_and_titled_ones_get_titled_neighbours(proposer, monkeypatch):
    found = {"Films": ["Reels", "films"], "films": ["plots"], "Plots": [], "plots": ["films", "Plots"]}
    monkeypatch.setattr(proposer, "neighbours", {**found, "FILMS": [], "songs": ["scenes"]})
    assert proposer._neighbours_of("Films") == ["Reels"]  # not the word itself
    assert proposer._neighbours_of("Plots") == ["Films"]
    assert proposer._neighbours_of("FILMS") == ["plots"]
    assert proposer._neighbours_of("songs") == ["scenes"]


def test_a_titled_word_of_a_cased_model_is_looked_up_in_both_spellings(folder):
    proposer = CandidateProposer(
        *load_masked_lm(folder / "teacher", CPU.device), WordVectors(folder / "glove.txt"), 6, CPU
    )
    proposer._look_up([[("Films", (1, 2)), ("plot", (3,))]])
    assert proposer.neighbours["Films"] == [] and proposer.neighbours["films"] and "plot" not in proposer.neighbours
    assert proposer._neighbours_of("Films") == [name.title() for name in proposer.neighbours["films"]]


def test_the_halves_of_contractions_are_stop_words():
    halves = (
        "d ll m o re s t ve y ain aren couldn didn doesn don hadn hasn haven isn ma mightn mustn needn shan shouldn"
    )
    assert {*f"{halves} wasn weren won wouldn".split()} <= STOP_WORDS
    assert len([word for word in STOP_WORDS if word.isascii()]) == 153  # NLTK's 179 less those with an apostrophe


def test_stop_words_stay_in_any_case_of_letters(proposer):
    text = "the and not very is a"
    assert proposer.candidates({text})[text][1].keys() <= set()
    assert {"the", "and", "not", "very", "is", "a"} <= STOP_WORDS


def test_the_masked_pair_is_the_sentence_masked_and_as_it_was(proposer):
    tokenizer = proposer.tokenizer
    pieces = tokenizer.ids("good film is warm")
    ids, first_length, mask = proposer._masked_pair(pieces, 1)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "good", "[MASK]", "is", "warm", "[SEP]", "good", "film", "is", "warm", "[SEP]"]
    assert (first_length, mask) == (6, 2)


@pytest.mark.parametrize("position", [0, 3, 8, 9, 24, 40, 41, 49])
def test_a_sentence_over_the_maximum_is_windowed_around_the_mask(proposer, position):
    pieces = [5 + index % 13 for index in range(50)]
    pieces[position] = 20
    ids, first_length, mask = proposer._masked_pair(pieces, position)
    assert len(ids) <= proposer.max_length == 37
    assert ids[mask] == proposer.tokenizer.mask_token_id and ids.count(proposer.tokenizer.mask_token_id) == 1
    assert ids[first_length + mask - 1] == 20  # the word itself, in the unmasked half
    assert first_length == 2 + (proposer.max_length - 3) // 2  # the window is as long as it can be


def test_upper_case_sentences_are_widened_as_the_model_reads_them(proposer):
    words, candidates = proposer.candidates({"The FILM is Good"})["The FILM is Good"]
    assert words == ["the", "film", "is", "good"] and set(candidates) == {1, 3}


# --- the ranking


def make_proposer(model, count=6, batch_size=32):
    """A proposer with the tiny tokenizer and no vectors."""

    class NoVectors:
        chinese_words = frozenset()

        def neighbours(self, words, count, device):
            return {word: [] for word in words}

    return CandidateProposer(model.eval(), make_tokenizer(), NoVectors(), count, CPU, batch_size)


def make_model(vocab_size=None, **values):
    torch.manual_seed(5)
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 37,
        "initializer_range": 0.3,
    }
    return BertForMaskedLM(BertConfig(vocab_size=vocab_size or len(VOCABULARY), **{**sizes, **values})).eval()


def random_texts(count):
    rng = random.Random(4)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_states_at_one_position_are_those_of_the_whole_computation(layers, padded):
    bert = make_model(num_hidden_layers=layers).double().bert
    with torch.no_grad():
        for name, bias in bert.named_parameters():
            if name.endswith("bias"):
                bias.normal_()
    ids, types = torch.randint(5, 9, (13, 7)), (torch.arange(7) > 3).long().repeat(13, 1)
    positions = torch.arange(13) % 7
    mask = (torch.arange(7) <= positions[:, None].clamp(min=3)).long() if padded else None
    with torch.inference_mode():
        whole = bert(ids, types, mask).hidden_states[-1][torch.arange(13), positions]
        torch.testing.assert_close(states_at(bert, positions, ids, types, mask), whole, rtol=0, atol=1e-12)


def exact_ranking(model, proposer, text):
    """Each mask's best ids, one sequence at a time in float64 over all positions, ties by the lower id."""
    model = copy.deepcopy(model).double()
    words = proposer.split(text)
    pieces = [piece for _, ids in words for piece in ids]
    for position in range(len(pieces)):
        ids, first_length, mask = proposer._masked_pair(pieces, position)
        types = [int(place >= first_length) for place in range(len(ids))]
        with torch.inference_mode():
            scores = model(torch.tensor([ids]), torch.tensor([types]))[0, mask].round(decimals=9)
        yield scores.sort(descending=True, stable=True).indices[: proposer.num_candidates].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_ranking_is_that_of_float64_in_any_batch(batch_size):
    model = make_model()
    with torch.no_grad():  # words that float32 cannot tell apart, and one that nothing can
        embeddings = model.bert.embeddings.word_embeddings.weight
        embeddings[8:14] = embeddings[7] + torch.randn(6, 24) * 3e-7
        embeddings[15] = embeddings[6]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    proposer, texts = make_proposer(model, 12, batch_size), random_texts(13)
    found = proposer._propose({text: proposer.split(text) for text in texts})
    for text in texts:
        assert found[text].tolist() == list(exact_ranking(model, proposer, text))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_sequences_with_near_scores_are_computed_again():
    model, rows = make_model(), {torch.float32: 0, torch.float64: 0}
    with torch.no_grad():  # two words that are often, not always, among the first
        model.bert.embeddings.word_embeddings.weight[8] = model.bert.embeddings.word_embeddings.weight[7] + 1e-7

    def count(module, args, scores):
        rows[scores.dtype] += len(scores)

    model.cls.predictions.register_forward_hook(count)
    proposer = make_proposer(model, 15)
    proposer.candidates(random_texts(60))
    assert 0 < rows[torch.float64] < 0.8 * rows[torch.float32]
    again, proposer.processes = rows[torch.float64], Launch(CPU.device, 0, 1, torch.bfloat16)
    proposer.candidates(random_texts(60))
    assert rows[torch.float64] == again  # there is nothing exact in bf16


def test_equal_scores_are_found_in_a_small_vocabulary_too():
    """Where few scores tell the deviation, two of them equal, all masks are ranked as in float64."""
    model = make_model()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[16] = model.bert.embeddings.word_embeddings.weight[0]
    proposer, texts = make_proposer(model, 12), random_texts(40)
    found = proposer._propose({text: proposer.split(text) for text in texts})
    for text in texts:
        assert found[text].tolist() == list(exact_ranking(model, proposer, text))


def test_ids_beyond_the_vocabulary_are_never_proposed():
    model = make_model(vocab_size=len(VOCABULARY) + 9)
    with torch.no_grad():
        model.cls.predictions.bias[len(VOCABULARY) :] = 99
    proposed = make_proposer(model, 99).candidates(["good film"])["good film"][1]
    assert set(proposed) == {0, 1} and len(proposed[0]) == len(VOCABULARY) - len(SPECIAL) - 1 - 4  # half words


def count_computed(model):
    """A list to which the number of scores of every batch will be added."""
    sizes = []
    model.cls.predictions.register_forward_hook(lambda module, args, scores: sizes.append(len(scores)))
    return sizes


def test_a_text_that_comes_again_in_another_call_is_computed_once():
    texts = random_texts(10)
    order = [*texts, texts[3], *texts[:4], *texts, "good plot"]
    model = make_model()
    proposer = make_proposer(model)
    expected = make_proposer(make_model()).candidates(order)
    proposer.prepare(iter(order))
    sizes = count_computed(model)
    for first in range(0, len(order), 4):
        part = order[first : first + 4]
        assert proposer.candidates(part) == {text: expected[text] for text in part}
    assert sum(sizes) == sum(len(candidates) for _, candidates in expected.values())
    assert proposer.kept.keys() == set(texts)  # and nothing of the others


def test_the_vectors_are_let_go_when_all_neighbours_are_known(folder):
    texts = ["the films", "good films", "a warm song"]
    proposers = [
        CandidateProposer(*load_masked_lm(folder / "teacher", CPU.device), WordVectors(folder / "glove.txt"), 6, CPU)
        for _ in range(2)
    ]
    proposers[0].prepare(texts)
    assert proposers[0].vectors is None
    assert proposers[0].candidates(texts) == proposers[1].candidates(texts)


# --- Chinese


CHARACTERS = list("电影好看真的我不喜欢这部音乐，。")
CHINESE_WORDS = {"电影": (1, 0), "音乐": (0.9, 0.1), "影片": (1, 0.1), "喜欢": (0, 1), "看": (0.1, 1), "film": (0.8, 0)}


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chinese")
    tokenizer = BertTokenizer({token: index for index, token in enumerate([*SPECIAL, *CHARACTERS, "##s", "film"])})
    lines = [f"{word} {east} {north}" for word, (east, north) in CHINESE_WORDS.items()]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = make_model(vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder / "teacher")
    model.save_pretrained(folder / "teacher")
    return CandidateProposer(model, tokenizer, WordVectors(folder / "vectors.txt"), 4, CPU), folder


def test_chinese_characters_are_joined_to_the_longest_words_of_the_vectors(chinese):
    proposer, _ = chinese
    words = [word for word, _ in proposer.split("我不喜欢这部电影 film，音乐 电影")]
    assert words == ["我", "不", "喜欢", "这", "部", "电影", "film", "，", "音乐", "电影"]
    without = make_proposer(make_model())
    assert [word for word, _ in without.split("喜欢电影")] == ["喜", "欢", "电", "影"]


def test_a_chinese_word_gets_neighbours_and_a_single_character_what_the_model_proposes(chinese):
    proposer, _ = chinese
    words, candidates = proposer.candidates(["我喜欢好电影。"])["我喜欢好电影。"]
    assert words == ["我", "喜欢", "好", "电影", "。"]
    assert set(candidates) == {1, 2, 3}  # neither the stop word nor the full stop
    assert candidates[3] == ["film", "影片", "音乐", "看"] and candidates[1][0] == "看"
    assert "好" not in candidates[2] and set(candidates[2]) <= {*CHARACTERS, "film"}


def test_chinese_rows_are_widened_by_the_whole_script(chinese):
    _, folder = chinese
    (folder / "SST-2").mkdir()
    (folder / "SST-2" / "train.tsv").write_text("sentence\tlabel\n我喜欢这部电影。\t1\n", encoding="utf-8")
    process = call_script(
        "data_augmentation.py",
        "--pretrained_bert_model",
        folder / "teacher",
        "--glove_embs",
        folder / "vectors.txt",
        "--glue_dir",
        folder,
        "--N",
        20,
        "--M",
        3,
    )
    assert process.returncode == 0, process.stderr
    lines = (folder / "SST-2" / "train_aug.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "我喜欢这部电影。\t1" and len(lines) > 5
    assert all(line.startswith("我") and line.endswith("。\t1") for line in lines[1:])
    assert any("影片" in line for line in lines) and not any("影 片" in line for line in lines)
