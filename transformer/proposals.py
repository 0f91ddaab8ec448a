"""Candidates for words: from a masked language model for words of one piece, from word vectors for longer ones.

Shapes: B batch, L length, D width, V vocabulary, N masked words, M candidates a word.
"""

import logging
import re

import numpy as np
import torch

from transformer.data import SequencesBuilder, id_typecode, token_batches
from transformer.tokenization import CJK
from transformer.vectors import is_special

FULL_LENGTH = 128  # tokens of a sentence, in the unit of `batch_size`

# Two scores of a mask that differ by less than this, in standard deviations of its scores over the vocabulary, are
# compared in float64. The largest float32 error in this unit, among 1.5 million scores: 3e-6 in a random BERT-base with
# weights of deviation 0.02, 6e-6 with 0.05 (a trained model is between), 3e-5 with 0.1; 3e-6 in the sample's teacher.
# The difference of two scores of a trained model thus errs by 1.2e-5 at most, and this is 1.7 times that. It computes
# 0.7% of a random BERT-base's words in float64; 1e-4 would be 6%.
TIE = 2e-5
MOST_WORDS = 2048  # of a text, four times what a BERT reads, may be replaced: each one can cost a run of the model
DEVIATION_SCORES = 2000  # so many of a mask's scores give their deviation to 2%; all of them take 1% to 2% longer
DECIMALS = 9  # float64 scores (noise 1e-14) that agree to this many places are equal; then the lower id comes first

# Words that are not replaced: they carry grammar rather than meaning. English: NLTK's list, as in the reference, of
# which only what the tokenizer makes of contractions counts ("didn", "ll"). Chinese: ours.
_STOP_WORDS = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those am is are was were be
    been being have has had having do does did doing a an the and but if or because as until while of at by for with
    about against between into through during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now d ll m o re ve y ain aren couldn didn doesn hadn
    hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
    的 地 得 了 着 过 和 与 及 或 但 而 是 有 在 也 都 就 还 又 很 太 更 最 不 没 没有 我 你 您 他 她 它 们 我们 你们
    他们 她们 它们 自己 这 那 这个 那个 这些 那些 这样 那样 谁 什么 怎么 哪 哪里 把 被 让 给 从 到 对 向 于 以 为 因为
    所以 如果 虽然 但是 而且 吗 呢 吧 啊 个 之 其 過 著 與 還 沒 沒有 們 我們 你們 他們 這 這個 那個 個 嗎 從 對 為
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
WORD = re.compile(f"[a-z]+|[{CJK}]+")  # only these words are replaced, in upper or lower case


def replaceable(word):
    return bool(WORD.fullmatch(word.lower())) and word.lower() not in STOP_WORDS


class CandidateProposer:
    """Proposes substitutes for the words of texts.

    Args: model: a BertForMaskedLM in evaluation mode; vectors: WordVectors; num_candidates: M; processes: device and
    precision; batch_size: masked sentences of FULL_LENGTH tokens computed at once.
    """

    def __init__(self, model, tokenizer, vectors, num_candidates, processes, batch_size=32):
        self.model, self.tokenizer, self.vectors, self.processes = model, tokenizer, vectors, processes
        self.num_candidates, self.batch_tokens = num_candidates, batch_size * FULL_LENGTH
        self.max_length = model.config.max_position_embeddings
        self.chinese_words, self.neighbours = vectors.chinese_words, {}
        self.repeated, self.kept = set(), {}  # hashes of texts that occur several times; the ids proposed for them
        # Special tokens and word pieces are not substitutes; the reference drops the pieces only.
        tokens = tokenizer.ids_to_tokens
        self.offered = [None if token.startswith("##") or is_special(token) else token for token in tokens]

    def prepare(self, texts):
        """Go through all texts once, before `candidates`: look up the neighbours of all words together, free the
        vectors (after the model the largest object in memory), and note the repeated texts, to run them once."""
        seen, most = set(), 0  # hashes: a collision costs some memory, nothing else

        def split_all():
            nonlocal most
            for text in texts:
                (self.repeated if hash(text) in seen else seen).add(hash(text))
                yield (words := self.split(text))
                most = max(most, len(words))

        self._look_up(split_all())
        self.vectors = None
        if most > MOST_WORDS:
            told = "some texts have more than %d words: only the first %d are replaced"
            logging.warning(told, MOST_WORDS, MOST_WORDS)

    def candidates(self, texts):
        """{text: (its words, {word index: candidates})}, without the words that have no candidates."""
        split = {text: self.split(text) for text in sorted(set(texts))}
        self._look_up(split.values())
        known = {text: self.kept[text] for text in split if text in self.kept}
        proposed = known | self._propose({text: words for text, words in split.items() if text not in known})
        # Copies, because the arrays of one call are views of a large one.
        self.kept |= {text: ids.copy() for text, ids in proposed.items() if hash(text) in self.repeated}
        return {text: self._choices(words, proposed[text]) for text, words in split.items()}

    def split(self, text):
        """[(word, ids of its pieces)]: the tokenizer's words; Chinese characters joined to the longest known words."""
        words = self.tokenizer.words_and_ids(text)
        if not self.chinese_words or text.isascii():
            return words
        joined, start = [], 0
        while start < len(words):
            for end in range(min(start + 8, len(words)), start, -1):
                word = "".join(word for word, _ in words[start:end])
                if word in self.chinese_words or end == start + 1:
                    joined.append((word, tuple(piece for _, ids in words[start:end] for piece in ids)))
                    start = end
                    break
        return joined

    def words(self, text):
        """The tokenizer's words of a text."""
        return [word for word, _ in self.tokenizer.words_and_ids(text)]

    def _look_up(self, texts):
        """Find the neighbours of the words of several pieces in split texts."""
        words = {word for text in texts for word, ids in text[:MOST_WORDS] if len(ids) > 1 and replaceable(word)}
        words |= {word.lower() for word in words}
        if unknown := sorted(words - self.neighbours.keys()):
            self.neighbours |= self.vectors.neighbours(unknown, self.num_candidates, self.processes.device)

    def _choices(self, split, proposed):
        """(words, {word index: candidates}) of one text; `proposed`: the ids for each masked word (N, M)."""
        candidates, proposed = {}, iter(proposed.tolist())
        for index, (word, ids) in enumerate(split[:MOST_WORDS]):
            if not replaceable(word):
                continue
            if len(ids) == 1:  # the word itself is not a substitute
                choices = [token for id in next(proposed) if (token := self.offered[id]) not in (None, word)]
            else:
                choices = self._neighbours_of(word)
            if choices:
                candidates[index] = choices
        return [word for word, _ in split], candidates

    def _neighbours_of(self, word):
        """The neighbours of a word as written, or else in lower case; those of a Titled word are Titled too."""
        found = self.neighbours[word] or self.neighbours[word.lower()]
        if word.istitle():
            titled = dict.fromkeys(name[:1].upper() + name[1:] for name in found)
            found = [name for name in titled if name != word]
        return found

    def _propose(self, texts):
        """{text: the ids proposed for its masked words (N, M), the most likely first} for {text: its (word, ids)}."""
        builder = SequencesBuilder(len(self.tokenizer), pad_token_id=self.tokenizer.pad_token_id)
        masks, ends = [], []
        for words in texts.values():
            pieces = [piece for _, ids in words for piece in ids]
            position = 0
            for word, ids in words[:MOST_WORDS]:
                if len(ids) == 1 and replaceable(word):
                    pair, first_length, mask = self._masked_pair(pieces, position)
                    builder.add(pair, first_length)
                    masks.append(mask)
                position += len(ids)
            ends.append(len(masks))
        if not masks:
            return dict.fromkeys(texts, np.zeros((0, 0), dtype=int))
        best = self._run_masked_lm(builder.build(), np.array(masks))
        return dict(zip(texts, np.split(best, ends[:-1]), strict=True))

    def _masked_pair(self, pieces, position):
        """[CLS] masked sentence [SEP] original sentence [SEP]; of a long sentence, a window around the mask."""
        # The reference cuts off the end of the sequence, and with it the masks of a long sentence's last words.
        room = (self.max_length - 3) // 2
        start = min(max(position - room // 2, 0), max(len(pieces) - room, 0))
        window = pieces[start : start + room]
        masked = list(window)
        masked[position - start] = self.tokenizer.mask_token_id
        ids, _ = self.tokenizer.encode_pair(masked, window)
        return ids, len(masked) + 2, position - start + 1

    @torch.inference_mode()
    def _run_masked_lm(self, sequences, masks):
        """The most likely ids (N, M) at `masks` (N,), one position of each sequence, the most likely first.

        Rounding in float32 depends on the shape of the batch, so scores that are close are compared again in float64.
        """
        count = min(self.num_candidates, len(self.tokenizer))
        every = max(len(self.tokenizer) // DEVIATION_SCORES, 1)
        best, results = np.zeros((len(masks), count), dtype=id_typecode(len(self.tokenizer))), []
        for rows, scores in self._scores(sequences, masks, np.arange(len(masks)), self.batch_tokens):
            scores = scores.float()
            values, ids = scores.topk(min(count + 1, scores.shape[1]))
            near = (values[:, :-1] - values[:, 1:] < TIE * scores[:, ::every].std(dim=1, keepdim=True)).any(dim=1)
            results.append((rows, ids[:, :count], near))
        for rows, ids, _ in results:  # after the loop, because each copy waits for the device
            best[rows] = ids.cpu().numpy()
        near = np.concatenate([rows[near.cpu().numpy()] for rows, _, near in results])
        if self.processes.dtype == torch.float32 and len(near):
            self.model.double()
            try:
                for rows, scores in self._scores(sequences, masks, near, self.batch_tokens // 2):
                    scores = scores.round(decimals=DECIMALS)
                    best[rows] = scores.sort(dim=1, descending=True, stable=True).indices[:, :count].cpu().numpy()
            finally:
                self.model.float()  # restores its weights exactly
        return best

    def _scores(self, sequences, masks, rows, tokens):
        """Yield (some of the rows, their scores over the vocabulary at the masks (B, V)) for all rows."""
        for indices in token_batches(sequences.lengths[rows], tokens):
            part = rows[indices]
            batch = self.processes.to_device({**sequences.batch(part), "masks": torch.from_numpy(masks[part])})
            inputs = (batch[name] for name in ("masks", "input_ids", "token_type_ids", "attention_mask"))
            with self.processes.autocast():
                scores = self.model.cls.predictions(states_at(self.model.bert, *inputs))
            yield part, scores[:, : len(self.tokenizer)]  # a config may round vocab_size up


def states_at(bert, positions, input_ids, token_type_ids=None, attention_mask=None):
    """The last hidden state (B, D) of a BertModel at `positions` (B,), one in each sequence: the last layer runs for
    these only."""
    hidden, mask_bias = bert.embed(input_ids, token_type_ids, attention_mask)
    *layers, last = bert.encoder.layer
    for layer in layers:
        hidden, _, _ = layer(hidden, mask_bias)
    asking = hidden[torch.arange(len(hidden), device=hidden.device), positions][:, None]  # (B, 1, D)
    return last(hidden, mask_bias, asking=asking)[0][:, 0]
