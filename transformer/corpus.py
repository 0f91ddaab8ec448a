"""A text corpus of any size, only a part of it in memory: its files, its documents, and its token ids on the disk.

Text files have a sentence per line and an empty line between documents; JSON Lines have a document per line, in the
field `text`. Either may be compressed (`.gz`).
"""

import gzip
import mmap
import os
import re
import zlib
from array import array
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.downloads import cached_path
from transformer.files import UserError, append_to, write_json
from transformer.json_file import FLAG, Field, parse_json, read_json, whole
from transformer.remote import s3_files

DOCUMENT = {"text": Field("the text of a document", needed=True)}  # a line of JSON Lines
THREE = Field("three whole numbers", (list,), 3, 3, of=whole(), needed=True)
STATE = {"complete": FLAG._replace(needed=True), "position": THREE, "sizes": THREE}
BLOCK_BYTES = 1 << 18  # text that a worker gets at a time
LONGEST = 1 << 22  # bytes, in JSON Lines characters; a longer document counts as several, so that memory stays bounded
LONGEST_LINE = 100_000_000  # bytes of a line of JSON, which can be parsed as a whole only
SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")  # files to take from folders
JSON_LINES = {".jsonl", ".json"}
# JSON Lines hold whole texts: a sentence ends at the end of a line or after its punctuation mark.
_SENTENCE_END = re.compile(r"\n|(?<=[.!?])\s+|(?<=[。！？])")


def corpus_files(names, cache_dir=None):
    """The files of a corpus, in a fixed order. Raises UserError: a missing file, a folder without corpus files.

    `names`: files, folders (searched for SUFFIXES, with their subfolders), https:// or s3:// addresses, which are
    downloaded into the cache, and s3://bucket/folder.
    """
    files = []
    for name in names:
        folder = name.startswith("s3://") and not name.endswith((*SUFFIXES, ".gz", *JSON_LINES))
        addresses = s3_files(f"{name.rstrip('/')}/") if folder else [name]
        if Path(name).is_dir():
            addresses = [str(path) for path in sorted(Path(name).rglob("*")) if path.is_file()]
        if addresses != [name]:
            addresses = [address for address in addresses if address.endswith(SUFFIXES)]
            if not addresses:
                raise UserError(f"{name}: no corpus files in it ({', '.join(SUFFIXES)})")
        files += [cached_path(address, cache_dir) for address in addresses]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return files


class Block(NamedTuple):
    """Whole documents, as they are in a file."""

    path: Path
    line: int  # number of the first line
    data: bytes
    next: tuple  # where the next block starts: number of the file, byte, line


def read_blocks(files, start=(0, 0, 1)):
    """Yield the corpus in Blocks of about BLOCK_BYTES, or of one longer document, from `start` (the `next` of a block)
    on. Raises UserError for a damaged .gz file."""
    for number in range(start[0], len(files)):
        path, (offset, line) = files[number], start[1:] if number == start[0] else (0, 1)
        opener = gzip.open if path.name.endswith(".gz") else open
        try:
            with opener(path, "rb") as file:
                file.seek(offset)
                for data in _whole_documents(file, bool(JSON_LINES & set(path.suffixes))):
                    offset, next_line = offset + len(data), line + data.count(b"\n")
                    if len(data) - data.rfind(b"\n") > LONGEST_LINE:
                        expected = f"expected less than {LONGEST_LINE / 1e6:g} MB; several lines make several documents"
                        raise UserError(f"{path} line {next_line}: too long a document, {expected}")
                    yield Block(path, line, data, (number, offset, next_line))
                    line = next_line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a valid gzip file ({error})") from None


def _whole_documents(file, json_lines):
    """Yield the bytes of an open file, cut between documents.

    A document of more than LONGEST bytes is cut at the next line end, and a line of so many after a character. This
    depends on its own length alone, so that a resumed run cuts at the same places.
    """
    data, start, longest = bytearray(), 0, LONGEST_LINE if json_lines else LONGEST  # `start`: of the current document
    while line := file.readline(longest):
        cut = len(line) == longest and not line.endswith(b"\n")
        while cut and len(line) < longest + 3 and re.match(b"[\x80-\xbf]", file.peek(1)):  # inside of a character
            line += file.read(1)
        data += line
        ended = json_lines or line.isspace()
        start = len(data) if ended else start
        if cut or (ended and len(data) >= BLOCK_BYTES) or len(data) - start > LONGEST:
            yield bytes(data)
            data, start = bytearray(), 0
    if data:
        yield bytes(data)


def documents(block):
    """Yield a block's documents, each a list of sentences. Raises UserError with the line: not UTF-8, not JSON."""
    try:
        lines = block.data.decode("utf-8").split("\n")  # not splitlines(): no other character ends a line
    except UnicodeDecodeError as error:
        start = block.data.rfind(b"\n", 0, error.start) + 1
        line, reason = block.line + block.data.count(b"\n", 0, start), f"{error.reason} at byte {error.start - start}"
        raise UserError(f"{block.path} line {line}: not UTF-8 text ({reason})") from None
    lines[0] = lines[0].removeprefix("\ufeff") if block.line == 1 else lines[0]
    if JSON_LINES & set(block.path.suffixes):
        for number, line in enumerate(lines, block.line):
            if line.strip():
                document = parse_json(line, block.path, number, DOCUMENT)["text"]
                for start in range(0, len(document) or 1, LONGEST):
                    yield _SENTENCE_END.split(document[start : start + LONGEST])
    else:
        for has_text, group in groupby(lines, lambda line: bool(line.strip())):
            if has_text:
                yield list(group)


def tokenize_block(tokenizer, typecode, block):
    """Three `array`s: the ids of a block's documents end to end, the number of ids in each sentence, and the number of
    sentences in each document. Sentences and documents without ids are left out."""
    ids, sentences, counts = array(typecode), array("I"), array("I")
    for document in documents(block):
        found = [*filter(None, map(tokenizer.ids, document))]
        ids.extend(chain.from_iterable(found))
        sentences.extend(map(len, found))
        if found:
            counts.append(len(found))
    return ids, sentences, counts


class CorpusWriter:
    """Writes a corpus's ids to three files in `folder`, which `Corpus` maps; continues after a killed run.

    ids: uint16 or uint32, end to end; sentences: where each sentence starts, and the end (int64); documents: the first
    sentence of each document, and the number of sentences (int64).
    """

    FILES = ("corpus_ids.part", "corpus_sentences.part", "corpus_documents.part")
    STATE = "corpus.part"

    def __init__(self, folder, typecode, made_from):
        """`made_from`: what the ids depend on, as JSON values; ids made from anything else are replaced."""
        self.folder, self.made_from = Path(folder), made_from
        state = read_json(self.folder / self.STATE, STATE) if (self.folder / self.STATE).is_file() else {}
        usable = state.get("made_from") == self.made_from and all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size >= size
            for name, size in zip(self.FILES, state["sizes"], strict=True)
        )
        if not usable:
            self.remove(folder)
            state = {"complete": False, "position": (0, 0, 1), "sizes": [0, 8, 8]}  # 8 bytes of a new file: offset 0
        self.complete, self.position, sizes = state["complete"], tuple(state["position"]), state["sizes"]
        places = [] if self.complete else zip(self.FILES, sizes, strict=True)
        self.files = [append_to(self.folder / name, size) for name, size in places]
        self.num_ids = sizes[0] // array(typecode).itemsize
        self.num_sentences, self.num_documents = sizes[1] // 8 - 1, sizes[2] // 8 - 1

    def add(self, ids, sentences, counts, position, limit=None):
        """Append the result of `tokenize_block`. position: the block's `next`; limit: documents in all."""
        if limit is not None and self.num_documents + len(counts) > limit:
            counts = counts[: limit - self.num_documents]
            sentences = sentences[: sum(counts)]
            ids = ids[: sum(sentences)]
        self.files[0].write(ids)
        self.files[1].write((np.cumsum(sentences, dtype=np.int64) + self.num_ids).tobytes())
        self.files[2].write((np.cumsum(counts, dtype=np.int64) + self.num_sentences).tobytes())
        self.num_ids += len(ids)
        self.num_sentences += len(sentences)
        self.num_documents += len(counts)
        self.position = position

    def save(self):
        """Record the sizes of the files once they are safely on the disk."""
        sizes = []
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
            sizes.append(file.tell())
        state = {"made_from": self.made_from, "position": self.position, "sizes": sizes, "complete": self.complete}
        write_json(self.folder / self.STATE, state)

    def finish(self):
        self.complete = True
        self.save()
        for file in self.files:
            file.close()

    @classmethod
    def remove(cls, folder):
        """Remove the files of a writer: no epoch needs them any more, or the corpus is not usable."""
        for name in (cls.STATE, *cls.FILES):
            (Path(folder) / name).unlink(missing_ok=True)


class Corpus:
    """The token ids of all documents, mapped from the files of a `CorpusWriter`."""

    def __init__(self, folder, typecode):
        self.folder, self.typecode = Path(folder), typecode
        dtypes = zip(CorpusWriter.FILES, (typecode, np.int64, np.int64), strict=True)
        self.maps = [np.memmap(self.folder / name, dtype, "r") for name, dtype in dtypes]
        # As plain arrays: a memmap takes longer to index.
        self.ids, self.sentence_offsets, self.document_offsets = map(np.asarray, self.maps)
        self.num_sentences = len(self.sentence_offsets) - 1

    def __reduce__(self):  # so that a worker process maps the files itself
        return Corpus, (self.folder, self.typecode)

    def __len__(self):
        return len(self.document_offsets) - 1

    def release(self):
        """Free the memory of the mapped pages; they are read again on demand."""
        if hasattr(mmap, "MADV_DONTNEED"):  # Linux, macOS
            for mapped in self.maps:
                mapped.base.madvise(mmap.MADV_DONTNEED)

    def document(self, index):
        """A document's ids, an array, and a list of the starts of its sentences and the end."""
        first, last = self.document_offsets[index : index + 2].tolist()
        bounds = self.sentence_offsets[first : last + 1]
        start, stop = int(bounds[0]), int(bounds[-1])
        return self.ids[start:stop], (bounds - start).tolist()

    def random_sentences(self, index, length, rng):
        """A list of ids from a random sentence of another document on: at least `length`, or all up to its end."""
        other = self.other_document(index, rng)
        first, last = self.document_offsets[other : other + 2].tolist()
        sentence = rng.randrange(first, last)
        start = int(self.sentence_offsets[sentence])
        bounds = self.sentence_offsets[sentence + 1 : last + 1]
        stop = int(bounds[min(int(np.searchsorted(bounds, start + length)), len(bounds) - 1)])
        return self.ids[start:stop].tolist()

    def other_document(self, index, rng):
        """The index of another document, drawn in proportion to its number of sentences."""
        first, last = self.document_offsets[index : index + 2].tolist()
        sentence = rng.randrange(self.num_sentences - (last - first))
        sentence += (last - first) * (sentence >= first)  # step over the document's own sentences
        return int(np.searchsorted(self.document_offsets, sentence, side="right")) - 1
