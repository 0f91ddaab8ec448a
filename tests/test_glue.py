"""The table of tasks: the official layouts of the files, the order of labels, and the metrics."""

import math
from itertools import permutations

import numpy as np
import pytest
from tiny import make_tokenizer

from transformer import file_utils
from transformer.file_utils import UserError
from transformer.files import make_folder
from transformer.glue import TASKS, TaskFile, compute_metrics, label_order
from transformer.own_tasks import find_task
from transformer.settings import Lengths
from transformer.tasks.classification import f1, matthews
from transformer.tasks.regression import pearson, spearman

# (task, file, header or None, row, texts, label) as the official archives have them; label None = test file.
MNLI_START = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2"
)
MNLI_ROW = "0\t31193\t31193n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tthe film is good\tthe plot is dull"
STS_START = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
STS_ROW = "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\ta film\ta song"
PAIR = ("the film is good", "the plot is dull")
LAYOUTS = [
    ("AX", "AX.tsv", "index\tsentence1\tsentence2", "0\ta film\ta song", ("a film", "a song"), None),
    (
        "AX",
        "diagnostic-full.tsv",
        "Lexical Semantics\tPredicate-Argument Structure\tLogic\tKnowledge\tDomain\tPremise\tHypothesis\tLabel",
        "\t\tNegation\t\tReddit\ta film\ta song\tneutral",
        ("a film", "a song"),
        "neutral",
    ),
    ("CoLA", "train.tsv", None, "gj04\t1\t\tthe film is good .", ("the film is good .",), "1"),
    ("CoLA", "dev.tsv", None, "gj04\t0\t*\tfilm the good .", ("film the good .",), "0"),
    ("CoLA", "test.tsv", "index\tsentence", "0\tthe song is warm", ("the song is warm",), None),
    ("SST-2", "train.tsv", "sentence\tlabel", "a good film \t1", ("a good film ",), "1"),
    ("SST-2", "test.tsv", "index\tsentence", "0\ta dull film", ("a dull film",), None),
    (
        "MRPC",
        "train.tsv",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "1\t702876\t702977\ta film\ta song",
        ("a film", "a song"),
        "1",
    ),
    (
        "MRPC",
        "test.tsv",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "0\t1089874\t1089925\ta film\ta song",
        ("a film", "a song"),
        None,
    ),
    ("STS-B", "train.tsv", f"{STS_START}\tscore", f"{STS_ROW}\t5.000", ("a film", "a song"), "5.000"),
    ("STS-B", "dev.tsv", f"{STS_START}\tscore", f"{STS_ROW}\t3.25", ("a film", "a song"), "3.25"),
    ("STS-B", "test.tsv", STS_START, STS_ROW, ("a film", "a song"), None),
    (
        "QQP",
        "train.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "133273\t213221\t213222\ta film\ta song\t0",
        ("a film", "a song"),
        "0",
    ),
    ("QQP", "test.tsv", "id\tquestion1\tquestion2", "0\ta film\ta song", ("a film", "a song"), None),
    ("MNLI", "train.tsv", f"{MNLI_START}\tlabel1\tgold_label", f"{MNLI_ROW}\tneutral\tneutral", PAIR, "neutral"),
    (
        "MNLI",
        "dev_matched.tsv",
        f"{MNLI_START}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
        f"{MNLI_ROW}\tneutral\tneutral\tentailment\tneutral\tneutral\tentailment",
        PAIR,
        "entailment",
    ),
    ("MNLI", "test_matched.tsv", MNLI_START, MNLI_ROW, PAIR, None),
    (
        "MNLI-mm",
        "dev_mismatched.tsv",
        f"{MNLI_START}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
        f"{MNLI_ROW}\tneutral\tneutral\tentailment\tneutral\tneutral\tentailment",
        PAIR,
        "entailment",
    ),
    ("MNLI-mm", "test_mismatched.tsv", MNLI_START, MNLI_ROW, PAIR, None),
    (
        "QNLI",
        "train.tsv",
        "index\tquestion\tsentence\tlabel",
        "0\tis the film good\tthe plot is dull\tentailment",
        ("is the film good", "the plot is dull"),
        "entailment",
    ),
    ("QNLI", "test.tsv", "index\tquestion\tsentence", "0\ta\tb", ("a", "b"), None),
    ("RTE", "test.tsv", "index\tsentence1\tsentence2", "0\ta film\ta song", ("a film", "a song"), None),
    (
        "RTE",
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel",
        "0\ta film\ta song\tnot_entailment",
        ("a film", "a song"),
        "not_entailment",
    ),
    ("WNLI", "train.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta film\ta song\t1", ("a film", "a song"), "1"),
    ("WNLI", "test.tsv", "index\tsentence1\tsentence2", "0\ta film\ta song", ("a film", "a song"), None),
]


def write(path, *lines):
    path.write_bytes("".join(f"{line}\n" for line in lines if line is not None).encode())
    return path


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0]}-{layout[1]}")
def test_every_official_layout_is_read(tmp_path, layout):
    name, file, header, row, texts, label = layout
    task = find_task(name)
    assert file in ("train.tsv", *task.dev_files, *task.test_files)
    task_file = TaskFile(write(tmp_path / file, header, row, row), task, labelled=label is not None)
    assert task_file.header == header
    rows = list(task_file)
    assert [found.line for found in rows] == ([2, 3] if header else [1, 2])
    assert {(found.texts, found.label) for found in rows} == {(texts, label)}
    assert rows[0].columns == row.split("\t")


def test_every_task_has_a_layout_above():
    assert {layout[0] for layout in LAYOUTS} == {task.name for task in TASKS.values()}


@pytest.mark.parametrize("name", ["sst-2", "SST-2", "Sst-2", "cola", "sts-b", "MNLI", "mnli-mm"])
def test_task_names_are_found_in_any_case(name):
    assert find_task(name).name.lower() == name.lower()


@pytest.mark.parametrize("name", ["sst2", "SST_2", "stsb", "mnli_mm", "MNLIMM", "c-o-l-a"])
def test_task_names_are_found_without_their_hyphens_unless_a_folder_has_that_name(tmp_path, name):
    found = find_task(name, tmp_path / "elsewhere")
    assert found.name.lower().replace("-", "") == name.lower().replace("-", "").replace("_", "")
    write(make_folder(tmp_path / name) / "train.tsv", "text\tlabel", "x\tyes", "y\tno")
    assert find_task(name, tmp_path / name).labels == ("no", "yes")
    assert find_task(name, tmp_path / name.lower() / "..") is found


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(tmp_path, task):
    train = () if task.trained_as else (task.train_file,)
    for file in (*train, *task.dev_files, *task.test_files):
        fetched = file in file_utils.SOURCES[task.source].files
        advice = f"fetched into {task.source}/ by: python -m transformer.file_utils {task.source}$"
        advice = advice if fetched else "it is published at https://gluebenchmark.com/diagnostics$"
        with pytest.raises(UserError, match=f"{file}: no such file; {advice}"):
            TaskFile(tmp_path / file, task)
    with pytest.raises(UserError, match="train_aug.tsv: no such file$"):  # step 0 does not have it
        TaskFile(tmp_path / "train_aug.tsv", task)


def test_mnli_mm_is_mnli_s_second_set_in_mnli_s_folder():
    task = find_task("mnli-mm")
    assert task.settings[1]["data_dir"] == find_task("MNLI").settings[1]["data_dir"]
    assert task.labels == find_task("MNLI").labels and task.submissions == ["MNLI-mm.tsv"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\ta film\ta song\n".encode())
    [row] = TaskFile(path, find_task("MRPC"))
    assert row.label == "1"


def test_quotes_are_characters_like_any_other(tmp_path):
    text = 'the "film is \'good" , "" plot'
    path = write(tmp_path / "train.tsv", "sentence\tlabel", f"{text}\t1", '"\t0', "a\t1")
    assert [row.texts[0] for row in TaskFile(path, find_task("SST-2"))] == [text, '"', "a"]


def test_other_line_ends_inside_the_text_do_not_end_a_row(tmp_path):
    path = write(tmp_path / "train.tsv", "sentence\tlabel", "a\u2028film\x85good\x0b\t1")
    assert [row.texts[0] for row in TaskFile(path, find_task("SST-2"))] == ["a\u2028film\x85good\x0b"]


def test_windows_line_ends_are_no_part_of_the_label(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"sentence\tlabel\r\na film\t1\r\n")
    assert [row.label for row in TaskFile(path, find_task("SST-2"))] == ["1"]


def test_short_rows_of_qqp_are_skipped_and_counted(tmp_path):
    header, row = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\ta\tb\t1"
    path = write(tmp_path / "train.tsv", header, row, "1\t2\tonly", row, "broken", row)
    task_file = TaskFile(path, find_task("QQP"))
    assert len(list(task_file)) == 3 and task_file.skipped == 2
    assert len(list(task_file)) == 3 and task_file.skipped == 2  # counted anew each time


def test_a_short_row_elsewhere_is_an_error_with_its_line(tmp_path):
    path = write(tmp_path / "train.tsv", "sentence\tlabel", "a\t1", "b")
    with pytest.raises(UserError, match="train.tsv line 3: 1 columns, expected 2"):
        list(TaskFile(path, find_task("SST-2")))


def test_labels_come_in_any_case_of_letters(tmp_path):
    rows = "0\ta\tb\tEntailment", "1\ta\tb\tNOT_entailment"
    path = write(tmp_path / "train.tsv", "index\tsentence1\tsentence2\tlabel", *rows)
    assert [row.label for row in TaskFile(path, find_task("RTE"))] == ["entailment", "not_entailment"]


def test_nul_bytes_and_lines_of_megabytes_are_text(tmp_path):
    path = write(tmp_path / "train.tsv", "sentence\tlabel", "the f\0ilm is good\t1", f"{'good film ' * 300_000}\t0")
    task, tokenizer = find_task("SST-2"), make_tokenizer()
    sequences = task.kind.encode(TaskFile(path, task), tokenizer, Lengths(31), task.labels)
    assert sequences.lengths.tolist() == [6, 31] and sequences.labels.tolist() == [1, 0]


def test_regression_labels_are_numbers(tmp_path):
    path = write(tmp_path / "dev.tsv", f"{STS_START}\tscore", f"{STS_ROW}\t2.5", f"{STS_ROW}\t0")
    task = find_task("STS-B")
    sequences = task.kind.encode(TaskFile(path, task), make_tokenizer(), Lengths(31), label_order(task, None))
    assert sequences.labels.tolist() == [2.5, 0.0]
    write(path, f"{STS_START}\tscore", f"{STS_ROW}\tnan")
    with pytest.raises(UserError, match="line 2: label 'nan', expected a number"):
        list(TaskFile(path, task))


@pytest.mark.parametrize("order", list(permutations(("contradiction", "entailment", "neutral"))))
def test_mnli_labels_follow_the_teacher_s_names_in_any_order(order):
    task = find_task("MNLI")
    assert label_order(task, list(order)) == order
    assert label_order(task, [name.upper() for name in order]) == order


def test_names_that_say_nothing_leave_the_table_s_order():
    task = find_task("MNLI")
    for names in (None, [], ["a", "b", "c"], ["entailment", "neutral"], ["entailment", "entailment", "neutral"]):
        assert label_order(task, names) == task.labels


def test_readable_names_of_a_task_decide_too():
    assert label_order(find_task("SST-2"), ["POSITIVE", "NEGATIVE"]) == ("1", "0")
    assert label_order(find_task("SST-2"), ["1", "0"]) == ("1", "0")
    assert label_order(find_task("MRPC"), ["equivalent", "not_equivalent"]) == ("1", "0")
    assert label_order(find_task("QNLI"), ["not_entailment", "entailment"]) == ("not_entailment", "entailment")
    assert label_order(find_task("RTE"), ["Not-Entailment", "Entailment"]) == ("not_entailment", "entailment")


def test_generic_names_are_no_names():
    from transformer.modeling import BertConfig, label_names

    config = BertConfig(id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert label_names(config) is None
    assert label_names(BertConfig(id2label={"1": "positive", "0": "negative"})) == ["negative", "positive"]


def test_accuracy_counts_the_right_ones():
    assert compute_metrics(find_task("SST-2"), [1, 0, 1, 1], [1, 1, 1, 0]) == {"acc": 0.5}


def test_f1_is_of_class_1():
    # 2 true positives, 1 false positive, 1 false negative: precision and recall 2/3.
    metrics = compute_metrics(find_task("MRPC"), [1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert metrics == {"acc": pytest.approx(0.6), "f1": pytest.approx(2 / 3), "acc_and_f1": pytest.approx(19 / 30)}


def test_matthews_correlation_by_hand():
    # TP 3, TN 1, FP 1, FN 2: (3 * 1 - 1 * 2) / sqrt(4 * 5 * 2 * 3)
    metrics = compute_metrics(find_task("CoLA"), [1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 1, 1])
    assert metrics == {"mcc": pytest.approx(1 / math.sqrt(120))}


def test_correlations_by_hand():
    # Ranks 1 2 3 5 4 against 1 2 3 4 5: Spearman 1 - 6 * 2 / (5 * 24).
    predictions, labels = [0.0, 1.0, 2.0, 9.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]
    metrics = compute_metrics(find_task("STS-B"), predictions, labels)
    pearson = 14 / math.sqrt(50 * 10)  # sums of products and squares about the means 3 and 2
    assert metrics["spearmanr"] == pytest.approx(0.9)
    assert metrics["pearson"] == pytest.approx(pearson)
    assert metrics["corr"] == pytest.approx((0.9 + pearson) / 2)
    assert list(metrics)[0] == find_task("STS-B").metrics[0]


def test_a_constant_prediction_correlates_with_nothing():
    assert compute_metrics(find_task("STS-B"), [2.0, 2.0], [1.0, 3.0])["corr"] == 0


def test_metrics_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 predictions for 3 labels"):
        compute_metrics(find_task("SST-2"), [1, 0], [1, 0, 1])


def test_the_first_metric_is_always_computed():
    for task in TASKS.values():
        assert task.metrics[0] in compute_metrics(task, [0, 1, 1], [0, 1, 0])


def test_pairs_are_cut_to_the_maximum_and_know_their_segments(tmp_path):
    path = write(
        tmp_path / "train.tsv",
        "index\tsentence1\tsentence2\tlabel",
        f"0\t{'film ' * 9}\t{'song ' * 3}\t1",
        "1\tfilm\tsong song\t0",
    )
    task, tokenizer = find_task("WNLI"), make_tokenizer()
    sequences = task.kind.encode(TaskFile(path, task), tokenizer, Lengths(11), task.labels)
    assert sequences.lengths.tolist() == [11, 6]
    assert sequences.first_lengths.tolist() == [7, 3]  # [CLS], 5 of 9 words, [SEP]
    assert sequences.labels.tolist() == [1, 0]


@pytest.mark.slow  # for the import
def test_scores_are_scikit_learn_s_and_scipy_s():
    import sklearn.metrics
    from scipy import stats

    rng = np.random.default_rng(1)
    for case in range(300):
        classes, rows = 2 + case % 4, int(rng.integers(1, 20))
        gold, predictions = rng.integers(0, classes, rows), rng.integers(0, classes, rows)
        average = "binary" if max(gold.max(), predictions.max()) < 2 else "macro"
        wanted = sklearn.metrics.f1_score(gold, predictions, average=average, zero_division=0)
        assert f1(predictions, gold) == pytest.approx(wanted)
        assert matthews(predictions, gold) == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, predictions))
        scores, others = rng.normal(size=rows + 2).round(1), rng.normal(size=rows + 2).round(1)
        if np.ptp(scores) and np.ptp(others):
            assert pearson(scores, others) == pytest.approx(stats.pearsonr(scores, others)[0])
            assert spearman(scores, others) == pytest.approx(stats.spearmanr(scores, others)[0])
