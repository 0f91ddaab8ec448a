"""Step 0: fetch the teacher (bert-base-uncased), the GloVe vectors and GLUE tasks into their folders; also the Chinese
teacher, its vocabulary alone, and published general students, with which stages 2 and 3 can be skipped.

Reads public addresses (the table SOURCES); writes teacher_model/, 1_pre_data/, a folder per task, 3_general_distill/.
An interrupted download continues where it stopped; a file that is there and intact is not fetched again.
Without a name it lists what it can fetch and what is already there.
第 0 步：下载教师模型、GloVe 词向量和 GLUE 任务数据，以及中文教师、词表和现成的通用学生；支持断点续传。

    python -m transformer.file_utils teacher glove SST-2
"""

import argparse
import functools
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections import namedtuple
from pathlib import Path
from urllib.parse import urlsplit

from transformer import downloads
from transformer.console import run
from transformer.downloads import WEIGHTS, cached_path, model_folder, upload
from transformer.files import UserError, atomic_write, copy_file, make_folder, write_json
from transformer.json_file import Field, read_json
from transformer.remote import HUB, hub, s3_files

# Older code imports these from here.
__all__ = ["UserError", "atomic_write", "cached_path", "model_folder", "read_json", "s3_files", "upload", "write_json"]

# megabytes: size of the download; addresses: of the files, or of what they are made from; model: instead of addresses,
# its name on the hub; teacher: for a general student, the source of its teacher.
Source = namedtuple("Source", "folder files megabytes addresses model teacher", defaults=((), "", ""))

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
MODEL = ("config.json", "vocab.txt", "tokenizer_config.json", "weights")
CHINESE_VOCABULARY = f"{HUB}/bert-base-chinese/resolve/main/vocab.txt"
TSV = ("train.tsv", "dev.tsv", "test.tsv")
MNLI_TSV = ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv", "test_mismatched.tsv")
MRPC_RAW = (SENTEVAL + "msr_paraphrase_train.txt", SENTEVAL + "msr_paraphrase_test.txt", GLUE + "mrpc_dev_ids.tsv")

FETCHED = Field("what is known of a file", (dict,), of=Field("a text or a size", (str, int)))
MISSING, INTACT, CHANGED, OWN = "missing", "intact", "changed", "there (your own files)"  # the states of a file

# The general students, which have no tokenizer_config.json, share a folder that has room for one.
student = functools.partial(Source, "3_general_distill", ("config.json", "vocab.txt", "weights"))


def squad(folder, files, megabytes):
    return Source(folder, files, megabytes, tuple(SQUAD + file for file in files))


# TINYBERT_MIRROR=https://host/folder replaces the scheme and host of every address here, HF_ENDPOINT those of the hub.
SOURCES = {
    "teacher": Source("teacher_model", MODEL, 441, model="bert-base-uncased"),
    "glove": Source("1_pre_data", ("glove.6B.100d.txt",), 862, ("https://nlp.stanford.edu/data/glove.6B.zip",)),
    "CoLA": Source("CoLA", TSV, 0.4, (GLUE + "CoLA.zip",)),
    "SST-2": Source("SST-2", TSV, 7.4, (GLUE + "SST-2.zip",)),
    "MRPC": Source("MRPC", TSV, 1.5, MRPC_RAW),
    "STS-B": Source("STS-B", TSV, 0.8, (GLUE + "STS-B.zip",)),
    "QQP": Source("QQP", TSV, 42, (GLUE + "QQP-clean.zip",)),
    "MNLI": Source("MNLI", MNLI_TSV, 313, (GLUE + "MNLI.zip",)),
    "QNLI": Source("QNLI", TSV, 11, (GLUE + "QNLIv2.zip",)),
    "RTE": Source("RTE", TSV, 0.7, (GLUE + "RTE.zip",)),
    "WNLI": Source("WNLI", TSV, 0.03, (GLUE + "WNLI.zip",)),
    "AX": Source("AX", ("AX.tsv",), 0.2, (GLUE + "AX.tsv",)),
    "squad": squad("SQuAD", ("train-v1.1.json", "dev-v1.1.json"), 35),
    "squad2": squad("SQuAD2", ("train-v2.0.json", "dev-v2.0.json"), 47),
    "bert-base-chinese": Source("teacher_model/bert-base-chinese", MODEL, 412, model="bert-base-chinese"),
    "vocab_21128": Source("1_pre_data", ("vocab_21128.txt",), 0.1, (CHINESE_VOCABULARY,)),
    "TinyBERT_General_4L_312D": student(60, model="huawei-noah/TinyBERT_General_4L_312D", teacher="teacher"),
    "TinyBERT_General_6L_768D": student(270, model="huawei-noah/TinyBERT_General_6L_768D", teacher="teacher"),
    "TinyBERT_4L_zh": student(46, model="huawei-noah/TinyBERT_4L_zh", teacher="bert-base-chinese"),
    "TinyBERT_6L_zh": student(240, model="huawei-noah/TinyBERT_6L_zh", teacher="bert-base-chinese"),
}

# The hub sends a sum for weights; the GloVe archive contains its own.
CHECKSUMS = {
    "CoLA.zip": "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
    "SST-2.zip": "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
    "STS-B.zip": "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
    "QQP-clean.zip": "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
    "MNLI.zip": "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
    "QNLIv2.zip": "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
    "RTE.zip": "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
    "WNLI.zip": "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
    "msr_paraphrase_train.txt": "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
    "msr_paraphrase_test.txt": "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
}


def unpack(archive, names, folder):
    """Write the members `names` of a zip archive (at its top or one folder down) into `folder`. Raises UserError when
    one is missing or damaged. Only these names are written, so no member can land elsewhere."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            for name in names:
                member = next((m for m in bundle.namelist() if re.fullmatch(rf"([\w-]+/)?{re.escape(name)}", m)), None)
                if member is None:
                    raise UserError(f"{archive}: holds no {name}")
                with bundle.open(member) as source, atomic_write(folder / name, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: encrypted
        raise UserError(f"{archive}: not a valid zip archive ({error})") from error


def make_mrpc(train, test, dev_ids, names, folder):
    """Write `names` (of train.tsv, dev.tsv, test.tsv) in GLUE's layout, from the corpus that Microsoft released."""
    ids = set(_lines(dev_ids))
    columns = "#1 ID\t#2 ID\t#1 String\t#2 String"
    out = {"train.tsv": [f"Quality\t{columns}"], "dev.tsv": [f"Quality\t{columns}"], "test.tsv": [f"index\t{columns}"]}
    for path in (train, test):
        for number, line in enumerate(_lines(path)[1:], start=2):
            row = line.split("\t")
            if len(row) != 5:
                raise UserError(f"{path}, line {number}: {len(row)} columns, expected 5 (quality, 2 ids, 2 sentences)")
            if path == test:  # GLUE hides the test labels and numbers the rows instead
                out["test.tsv"].append("\t".join([str(number - 2), *row[1:]]))
            else:
                out["dev.tsv" if "\t".join(row[1:3]) in ids else "train.tsv"].append(line)
    for name in names:
        with atomic_write(folder / name) as file:
            file.write("\n".join(out[name]) + "\n")


def _lines(path):
    # Split at "\n" only: the sentences contain other characters that Python counts as line ends.
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        return [line.strip("\r\n") for line in file if line.strip()]


def _address(url):
    mirror, url = os.environ.get("TINYBERT_MIRROR"), url.replace(HUB, hub(), 1)
    return mirror.rstrip("/") + urlsplit(url).path if mirror else url


def _fetched(cache):
    """{path: {"source": name, "sha256": sum}} of the files that were fetched; entries of another kind are left out."""
    found = downloads.read_or_empty(cache / "fetched.json")
    return {path: about for path, about in found.items() if FETCHED.fits(about) and {"source", "sha256"} <= {*about}}


def _file_states(name, root, cache):
    """{file of a source: MISSING, INTACT, CHANGED since it was fetched, or OWN (not fetched by us, used as it is)}."""
    folder, states, fetched = root / SOURCES[name].folder, {}, _fetched(cache)
    for file in SOURCES[name].files:
        if file == "weights":
            file = next((w for w in WEIGHTS if (folder / w).exists()), downloads.weights_in_order()[0])
        path = (folder / file).resolve()
        if not path.is_file() or not path.stat().st_size:
            states[file] = MISSING
        elif str(path) not in fetched:
            states[file] = OWN
        elif fetched[str(path)]["sha256"] == downloads.sha256_of(path):
            states[file] = INTACT
        else:
            states[file] = CHANGED
    return states


def _other_model(name, root, cache):
    """What is in the folder that a general student goes to, other than this student; "" for nothing."""
    source, folder = SOURCES[name], root / SOURCES[name].folder
    if not source.teacher:
        return ""
    if (folder / "run.json").exists():
        return "the output of general_distill.py"
    fetched = _fetched(cache)
    for path in (folder / file for file in (*MODEL[:-1], *WEIGHTS)):
        found = fetched.get(str(path.resolve()), {}).get("source", "a model of your own")
        if path.exists() and found != name:
            return found
    return ""


def fetch_source(name, root, cache):
    """Fetch the files of a source that are missing or changed into its folder under `root`. Raises UserError where
    another student is in the way."""
    source, folder = SOURCES[name], root / SOURCES[name].folder
    if other := _other_model(name, root, cache):
        instead = f"python task_distill.py --student_model {source.model}"
        raise UserError(f"{source.folder}/: holds {other}; move its files elsewhere first, or leave them: {instead}")
    states = _file_states(name, root, cache)
    wanted = [file for file, state in states.items() if state in (MISSING, CHANGED)]
    if not wanted:
        logging.info("%s: already in %s/", name, source.folder)
        return
    make_folder(folder)
    made, raw = _download(name, wanted, cache)
    for file in wanted:
        if states[file] == CHANGED:
            os.replace(folder / file, folder / f"{file}.old")
            logging.info("%s: was changed after it was fetched; kept as %s.old", folder / file, file)
    contents = _unpack(name, raw, made, folder)
    # Recorded before they are copied: what a killed run leaves is then known to come from here.
    record = _fetched(cache)
    for file, path in zip(made, contents, strict=True):
        about = {"source": name, "size": path.stat().st_size, "sha256": downloads.sha256_of(path)}
        record[str((folder / file).resolve())] = about
    write_json(cache / "fetched.json", record)
    for file, path in zip(made, contents, strict=True):
        copy_file(path, folder / file)
    for path in raw:  # do not keep a second copy
        if cache in path.parents:  # a mirror may be a local folder
            path.unlink(missing_ok=True)
    logging.info("%s: %s in %s/", name, ", ".join(made), source.folder)
    if source.teacher:
        _tell_what_is_next(SOURCES[source.teacher], source.teacher)


def _download(name, wanted, cache):
    """(names of the files that were fetched, paths in the cache of these files or of what they are made from)."""
    source = SOURCES[name]
    if not source.model:
        files = {url.rsplit("/", 1)[-1]: url for url in source.addresses}
        # Of files that are published as they are, only those that are wanted.
        addresses = [files[file] for file in wanted] if {*source.files} <= files.keys() else source.addresses
        return wanted, [cached_path(_address(url), cache, CHECKSUMS.get(url.rsplit("/", 1)[-1])) for url in addresses]
    weights = downloads.weights_in_order() if {*wanted} & {*WEIGHTS} else ()  # in either format
    copy = downloads.fetch_model(_address(f"{HUB}/{source.model}/resolve/main"), cache / name, bool(weights))
    made = [file for file in dict.fromkeys((*wanted, *weights)) if (copy / file).is_file()]
    return made, [copy / file for file in made]


def _unpack(name, raw, made, folder):
    """The paths of the files `made`: `raw` itself, or where raw ones were unpacked to."""
    if name == "MRPC":
        make_mrpc(*raw, made, folder)
    elif any(path.suffix == ".zip" for path in raw):
        unpack(*raw, made, folder)
    else:
        return raw
    return [folder / file for file in made]


def _tell_what_is_next(teacher, name):
    """Log what to do with a general student. `teacher`: its teacher's source, called `name`."""
    logging.info("a general student: stages 2 and 3 can be skipped")
    logging.info("its teacher: %s (python -m transformer.file_utils %s)", teacher.model, name)
    own = "" if name == "teacher" else f" --teacher_model {teacher.folder} --task_name YOUR_TASK"
    logging.info("next: python task_distill.py%s", own)


def print_table(root, cache):
    """Print what can be fetched, where it goes, its size and its state."""
    rows = [("name", "goes to", "download", "state")]
    for name, source in SOURCES.items():
        goes_to = f"{source.folder}/" + (source.files[0] if len(source.files) == 1 else f" ({len(source.files)} files)")
        if other := _other_model(name, root, cache):
            summary = f"{MISSING} ({source.folder}/ holds {other})"
        else:
            states = _file_states(name, root, cache)
            bad = [f"{state}: {file}" for file, state in states.items() if state in (MISSING, CHANGED)]
            summary = next(iter(states.values())) if len({*states.values()}) == 1 else ", ".join(bad) or OWN
        rows.append((name, goes_to, f"{source.megabytes:g} MB", summary))
    for name, goes_to, size, summary in rows:
        print(f"{name:<25}{goes_to:<43}{size:>8}  {summary}")


def main(argv=None):
    """Fetch the named sources, or list them."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m transformer.file_utils", description=__doc__, formatter_class=verbatim)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("names", nargs="*", help=f"what to fetch: {', '.join(SOURCES)}, or all (every GLUE task)")
    parser.add_argument("--dir", type=Path, default=root, help="folder of teacher_model/, SST-2/ ... (this suite's)")
    parser.add_argument("--cache_dir", help="folder of unfinished downloads ($TINYBERT_CACHE or ~/.cache/tinybert)")
    parser.add_argument("--list", action="store_true", help="only list what can be fetched and what is already there")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cache = downloads.cache_folder(args.cache_dir)
    known = {name.lower(): [name] for name in SOURCES}
    known["all"] = [name for name, source in SOURCES.items() if source.folder == name]
    names = dict.fromkeys(source for name in args.names for source in known.get(name.lower(), [name]))
    for name in names:
        if name not in SOURCES:
            raise UserError(f"{name}: unknown name, expected one of {', '.join(SOURCES)}, all")
    if args.list or not names:
        return print_table(args.dir, cache)
    for name in names:
        fetch_source(name, args.dir, cache)


if __name__ == "__main__":
    run(main)
