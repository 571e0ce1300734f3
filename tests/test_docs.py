"""README.md and docs/: tables are tables, citations lead somewhere, and the numbers are those of the code."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from committed import as_committed, tracked
from conftest import ROOT
from markdown_it import MarkdownIt

from benchmarks import gpu, speed
from data.datasets import open_dataset
from deployment import evaluation
from experiments import results, tables
from grafting.recipes import PUBLISHED_SHOTS, RECIPES, batch_size, recipe_of
from grafting.scions import parameters_by_role, scions
from models.vgg import ARCHITECTURES, FIRST_GRAFTED, BlockwiseVGG, parameter_count

MARKDOWN = MarkdownIt("commonmark").enable("table")
CIFAR = ("CIFAR10", "CIFAR100")
CITATION = re.compile(r"docs/method\.md, sections? (\d+(?:(?:, | and | to )\d+)*)")
METHODS = tracked("benchmarks/results/methods/*/methods.md")
RESULTS = [path.parent for path in tracked("benchmarks/results/*/table.md")]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *(folder / "table.md" for folder in RESULTS)]


def rendered_tables(text: str) -> list[tuple[int, int, int]]:
    """(first line, line behind it, rows under the head) of every table that a reader sees."""
    found: list[tuple[int, int, int]] = []
    for token in MARKDOWN.parse(text):
        if token.type == "table_open":
            found.append((*token.map, -1))
        elif token.type == "tr_open":
            first, end, rows = found[-1]
            found[-1] = first, end, rows + 1
    return found


def written_tables(text: str) -> list[tuple[int, int, int]]:
    """The same of every block of lines that begin with |, outside code."""
    lines = text.split("\n")
    for token in MARKDOWN.parse(text):
        if token.type == "fence":
            lines[slice(*token.map)] = [""] * (token.map[1] - token.map[0])
    starts = [i for i, line in enumerate(lines) if line.startswith("|") and not (i and lines[i - 1].startswith("|"))]
    found = []
    for start in starts:
        end = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[start:end]}
        assert len(columns) == 1, f"line {start + 1}: rows of different lengths"
        found.append((start, end, end - start - 2))
    return found


def assert_tables(text: str, count: int) -> None:
    assert rendered_tables(text) == written_tables(text)
    assert len(written_tables(text)) >= count


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_is_rendered(page):
    assert_tables(page.read_text(), 1)


def test_what_is_no_table_is_noticed():
    for broken in ("| N | n |\n| -: | : |\n| 1 | 1 |\n", "| a |\n| - |\n| 1 |\nbehind it\n"):
        assert rendered_tables(broken) != written_tables(broken)


def cell(shots, trial, best=None):
    outcome = {"status": "failed"} if best is None else {"status": "done", "best": best, "last": best}
    setting = {"shots": shots, "trial": trial, "schedule": []}
    return {**outcome, "setting": setting, "teacher": {"accuracy": 92.3}}


@pytest.mark.parametrize("cells", [[], [cell(1, 0, 80.0)], [cell(1, 0), cell(10, 0, 91.5), cell(10, 1)]])
def test_tables_of_results(cells):
    assert_tables(tables.markdown(tables.rows(cells, RECIPES["CIFAR10"])), 1)


def test_tables_of_the_benchmark():
    assert_tables(speed.table("part", ["1", "2"]), 1)
    for report in tracked("benchmarks/results/speed-*.json"):
        content = json.loads(report.read_text())
        assert_tables(speed.markdown(content), 2 + 2 * len(content["cells"]))
    for report in tracked("benchmarks/results/gpu-*.json"):
        assert_tables(gpu.markdown(json.loads(report.read_text())), 1)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_tables_of_results_are_made_from_the_files_beside_them(folder, tmp_path):
    folder = as_committed(folder, tmp_path)
    found = results.read_all(folder)
    table = tables.rows(found, recipe_of(found[0]["setting"]["dataset"]))
    assert (folder / "table.md").read_text() == tables.markdown(table) + "\n"
    assert any(tables.markdown(table) in (ROOT / page).read_text() for page in ("README.md", "docs/results.md"))


@pytest.mark.parametrize("file", METHODS, ids=lambda file: file.parent.name)
def test_the_tables_of_methods_are_in_the_docs(file, tmp_path):
    """`tests/benchmarks/test_comparison.py` makes them from result files."""
    text = (as_committed(file.parent, tmp_path) / file.name).read_text()
    page, tables = (ROOT / "docs/comparisons.md").read_text(), written_tables(text)
    assert len(tables) >= 3
    for start, end, _ in tables:
        assert "\n".join(text.split("\n")[start:end]) in page


def test_the_tables_of_deployment_are_made_from_the_files_of_json():
    page, reports = (ROOT / "docs/deployment.md").read_text(), tracked("benchmarks/results/deployment/*.json")
    for report in reports:
        networks = json.loads(report.read_text())["networks"]
        table, *_ = evaluation.markdown([evaluation.Figures(**figures) for figures in networks]).split("\n\n")
        assert table in page
    assert len(reports) == 2


def test_the_table_of_prototype_weights_is_made_from_the_records_it_names():
    page, count = (ROOT / "docs/teachers.md").read_text(), 0
    for file in tracked("benchmarks/results/teachers/*.json"):
        record = json.loads(file.read_text())
        recipe, block = record["recipe"], record["blocks"][FIRST_GRAFTED - 1]
        numbers = f"{recipe['prototype_head']:g} | {recipe['epochs']} | {record['test_accuracy']:.2f}"
        row = f"| {record['dataset']} | {numbers} | {block['one_shot']:.2f} | `{file.name}` |"
        assert (row in page) == (recipe["name"] == "quick")
        count += row in page
    assert count == len(re.findall(r"\.json` \|$", page, re.M))


def test_the_table_of_subset_seeds_is_made_from_the_files_it_names():
    rows = re.findall(
        r"^\| (\d+) \| (\d+)(?: \(as released\))? \| (.*) \| `(.*)` \|$",
        (ROOT / "docs/results.md").read_text(),
        re.M,
    )
    assert len(rows) == 10
    for shots, seed, last, file in rows:
        result = results.read(ROOT / file)
        setting = result["setting"]
        assert (setting["shots"], setting["subset_seed"], f"{result['last']:.2f}") == (int(shots), int(seed), last)


def test_files_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(r"[\w/]+\.py\b", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"


def test_citations_lead_to_a_section():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are the repository's is not known")
    tokens = MARKDOWN.parse((ROOT / "docs/method.md").read_text())
    heads = [text for opening, text in pairwise(tokens) if (opening.type, opening.tag) == ("heading_open", "h2")]
    sections = [int(head.content.partition(". ")[0]) for head in heads]
    assert sections == list(range(1, 10))
    count = 0
    for path in tracked("**/*.py", "**/*.md"):
        text = " ".join(path.read_text().split())
        assert not re.search(r"\bMETHOD(:|\.md|'s)", text), path
        cited = [int(number) for group in CITATION.findall(text) for number in re.findall(r"\d+", group)]
        assert set(cited) <= set(sections), path
        if path != Path(__file__) and path.suffix == ".py":
            assert len(CITATION.findall(text)) == text.count("docs/method.md"), f"{path}: cite a section"
            count += len(CITATION.findall(text))
    assert count >= 8


@pytest.fixture(scope="module")
def method():
    """A function that gives the table of docs/method.md that has such a column, its rows as {column: cell}."""
    tables: list[list[list[str]]] = []
    for token in MARKDOWN.parse((ROOT / "docs/method.md").read_text()):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and token.level > 3:
            tables[-1][-1].append(token.content)

    def find(column):
        ((head, *rows),) = [table for table in tables if column in table[0]]
        return [dict(zip(head, row, strict=True)) for row in rows]

    return find


def span(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def test_stage_1_is_the_recipes(method):
    written = [
        (
            row["data set"],
            row["scion"],
            span(row["span"]),
            float(row["learning rate, student"]),
            float(row["learning rate, adapters"]),
            int(row["epochs"]),
        )
        for row in method("learning rate, student")
    ]
    phases = [(name, phase) for name in CIFAR for phase in RECIPES[name].stage1]
    assert written == [(name, p.name, p.span, p.lr_student, p.lr_adapter, p.epochs) for name, p in phases]
    assert all(phase.rates(20) == (2 * phase.lr_student, 2 * phase.lr_adapter) for _, phase in phases)


def test_stage_2_is_the_recipes(method):
    written = [
        (
            row["data set"],
            row["graft"].replace("=", ""),
            span(row["span"]),
            float(row["learning rate"]),
            int(row["epochs"]),
        )
        for row in method("learning rate")
    ]
    phases = [(name, phase) for name in CIFAR for phase in RECIPES[name].stage2]
    assert written == [(name, p.name, p.span, p.lr_student, p.epochs) for name, p in phases]
    assert all(phase.rates(20) == (phase.lr_student, phase.lr_student) for _, phase in phases)


def test_batches_are_the_recipes(method):
    written = [tuple(map(int, row.values())) for row in method("batch size")]
    steps = {n: [-(-n * classes // batch_size(n)) for classes in (10, 100)] for n in PUBLISHED_SHOTS}
    assert written == [(n, batch_size(n), *steps[n]) for n in PUBLISHED_SHOTS]
    whole = 2 * sum(phase.epochs for phase in RECIPES["CIFAR10"].phases)
    assert f"take {whole} steps on CIFAR10" in (ROOT / "docs/method.md").read_text()


@pytest.mark.parametrize("name", CIFAR)
def test_published_results_are_the_recipes(method, name):
    rows = [row for row in method("CIFAR10") if "±" in row[name]]
    assert {int(row["N"]): tuple(map(float, row[name].split(" ± "))) for row in rows} == RECIPES[name].published


def test_networks_are_the_models(method):
    for row in method("parameters, 10 classes"):
        architecture = ARCHITECTURES[re.search(r"`(.*)`", row["network"])[1]]
        assert tuple(span(row[f"block {b}"]) for b in range(5)) == architecture.widths
        between = [f"BatchNorm1d({architecture.hidden})"] if architecture.batchnorm else []
        linear = [f"Linear({architecture.width_after(-1)}, {architecture.hidden})", f"Linear({architecture.hidden}, C)"]
        assert row["classifier"] == ", ".join([linear[0], *between, linear[1]])
        for classes in (10, 100):
            count = parameter_count(BlockwiseVGG(architecture, classes))
            assert row[f"parameters, {classes} classes"] == f"{count:,}"


def test_counts_of_scions_are_the_models():
    teacher = ARCHITECTURES["vgg16"]
    scion = torch.nn.Sequential(*scions(teacher, 10, torch.Generator()))
    _, adapters = parameters_by_role(scion)
    frozen, grafted = parameter_count(BlockwiseVGG(teacher, 10)[:3]), parameter_count(scion)
    text = (ROOT / "docs/method.md").read_text()
    for count in (frozen, grafted, sum(p.numel() for p in adapters), frozen + grafted):
        assert f"{count:,}" in text
    assert f"{len(scion.state_dict())} tensors" in text


def test_data_are_the_codes(method):
    text = (ROOT / "docs/method.md").read_text()
    for row in method("mean"):
        dataset = open_dataset(row["data set"], ROOT / "data/raw")
        written = [tuple(map(float, row[column].split(", "))) for column in ("mean", "standard deviation")]
        assert written == [dataset.normalization.mean, dataset.normalization.std]
        assert f"{dataset.subset_seed} for {dataset.name}" in text
    tested = (ROOT / "tests/data/test_fewshot.py").read_text()
    for row in method("sha256"):
        assert f'("{row["data set"]}", {row["N"]}): "{row["sha256"].strip("`")}"' in tested
    assert len(method("sha256")) == 6
