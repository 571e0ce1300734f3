"""README.md and docs/: tables are tables, what is named exists, figures have files, and the numbers are the code's."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from committed import as_committed, tracked
from conftest import ROOT
from markdown_it import MarkdownIt
from small import frozen_teacher

from data.datasets import open_dataset
from deployment.evaluation import Figures, markdown
from experiments import results, subsets, tables
from grafting.recipes import PUBLISHED_SHOTS, RECIPES, batch_size, recipe_of
from grafting.scions import adapters_of, scions
from models.architectures import ARCHITECTURES
from models.networks import parameter_count
from models.vgg import BlockwiseVGG

MARKDOWN = MarkdownIt("commonmark").enable("table")
CIFAR = ("CIFAR10", "CIFAR100")
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
METHOD = (ROOT / "docs/method.md").read_text()


def tables_of(text: str) -> list[list[tuple[str, ...]]]:
    """The rows of every table that a reader sees, as cells; the first row is the head."""
    tokens, found = MARKDOWN.parse(text), []
    for token, behind in pairwise(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append(())
        elif token.type in ("th_open", "td_open"):
            found[-1][-1] += (behind.content,)
    return found


def misprinted(text: str) -> list[str]:
    """The blocks of lines that begin with |, outside code, which are no table with a row of as many cells for each."""
    blocks = re.findall(r"(?:^\|.*\n)+(?:^[^|\n].*\n)?", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    bars = [[len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()] for block in blocks]
    rendered = [[len(table) for table in tables_of(block)] for block in blocks]
    return [b for b, n, rows in zip(blocks, bars, rendered, strict=True) if rows != [len(n) - 1] or len(set(n)) > 1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_rendered_and_what_is_named_exists(page):
    text = page.read_text()
    assert misprinted(text) == []
    assert [name for name in re.findall(r"[\w/]+\.py\b", text) if not (ROOT / name).is_file()] == []
    links = [t.attrs.get("href") or t.attrs.get("src") for line in MARKDOWN.parse(text) for t in line.children or ()]
    local = [link.partition("#")[0] for link in links if link and ":" not in link]
    assert [name for name in local if not (page.parent / name).exists()] == []
    assert [name for name in re.findall(r"`(benchmarks/results/[^` ]+)`", text) if not any(ROOT.glob(name))] == []


@pytest.mark.parametrize("file", tracked("benchmarks/results/*/table.md"), ids=lambda file: file.parent.name)
def test_tables_of_results_are_made_from_the_files_beside_them(file, tmp_path):
    folder = as_committed(file.parent, tmp_path)
    found = results.read_all(folder)
    made = tables.markdown(tables.rows(found, recipe_of(found[0]["setting"]["dataset"])))
    assert (folder / "table.md").read_text() == made + "\n" and misprinted(made + "\n") == []


@pytest.mark.parametrize("file", tracked("benchmarks/results/**/subsets.md"), ids=lambda file: file.parent.name)
def test_tables_over_subsets_are_made_from_the_files_beside_them(file, tmp_path):
    folder = as_committed(file.parent, tmp_path)
    before = (folder / file.name).read_text()
    subsets.write(folder)
    assert (folder / file.name).read_text() == before and misprinted(before) == []


def test_rows_of_the_pages_have_files_behind_them():
    """A table with the head of generated ones holds rows of theirs. A row that names a file holds numbers of its."""
    made = [file.read_text() for file in tracked("benchmarks/results/**/*.md")]
    for file in tracked("benchmarks/results/deployment/*.json"):
        made.append(markdown([Figures(**network) for network in json.loads(file.read_text())["networks"]]))
    generated, checked = [table for text in made for table in tables_of(text)], 0
    for head, *rows in (table for page in PAGES for table in tables_of(page.read_text())):
        if known := {row for other in generated if other[0] == head for row in other}:
            assert set(rows) <= known
            checked += len(rows)
        for row in rows:
            if named := re.fullmatch(r"`([\w/.-]+\.json)`", row[-1]):
                (file,) = tracked(f"**/{named[1]}")
                there = {f"{float(number):.2f}" for number in re.findall(r"\d+\.\d+", file.read_text())}
                assert set(re.findall(r"\d+\.\d\d\b", " ".join(row))) <= there
    assert checked >= 12  # the paper's twelve N on the front page


def test_citations_lead_to_a_section():
    sections = [int(number) for number in re.findall(r"^## (\d+)\. ", METHOD, re.M)]
    assert sections == list(range(1, 11))
    for path in tracked("**/*.py", "**/*.md"):
        text = " ".join(path.read_text().split()) if path.exists() else ""
        cited = re.findall(r"docs/method\.md, sections? (\d+(?:(?:, | and | to )\d+)*)", text)
        assert {n for group in cited for n in numbers(group)} <= set(sections), path


def method(column: str) -> list[dict[str, str]]:
    """The rows of the table of docs/method.md that has such a column, as {column: cell}."""
    ((head, *rows),) = [table for table in tables_of(METHOD) if column in table[0]]
    return [dict(zip(head, row, strict=True)) for row in rows]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def test_schedules_batches_and_published_results_are_the_recipes():
    def schedule(row, graft, *rates):
        name, span, epochs = row[graft].replace("=", ""), numbers(row["span"]), int(row["epochs"])
        return row["data set"], name, span, epochs, *(float(row[rate]) for rate in rates)

    stage1, stage2 = ("learning rate, student", "learning rate, adapters"), ("learning rate", "learning rate")
    written = {schedule(row, "scion", *stage1) for row in method(stage1[0])}
    written |= {schedule(row, "graft", *stage2) for row in method(stage2[0])}
    phases = [(name, phase) for name in CIFAR for phase in RECIPES[name].phases]
    assert written == {(name, p.name, p.span, p.epochs, p.lr_student, p.lr_adapter) for name, p in phases}
    written = {tuple(map(int, row.values())) for row in method("batch size")}
    steps = {n: [-(-n * classes // batch_size(n)) for classes in (10, 100)] for n in PUBLISHED_SHOTS}
    assert len(written) == 5 and written <= {(n, batch_size(n), *steps[n]) for n in PUBLISHED_SHOTS}
    assert {tuple(steps[n]) for n in PUBLISHED_SHOTS if n >= 3} == {(2, 16)}  # "From N = 3 on"
    assert f"take {2 * RECIPES['CIFAR10'].epochs} steps on CIFAR10" in METHOD


def test_the_front_pages_table_is_that_of_the_paper_and_of_the_results():
    """Paper, best, last of CIFAR10; paper, best, last, n of CIFAR100: from the folders named below the table."""
    text = README.read_text()
    ((_, _, *rows),) = [table for table in tables_of(text) if "CIFAR10: paper" in table[0]]
    below = text.partition("|CIFAR10: paper|")[2]
    folders = re.findall(r"`(benchmarks/results/[\w-]+)`", below)[:2]
    for name, folder, (first, last) in zip(CIFAR, folders, ((1, 4), (4, 8)), strict=True):
        (made,) = tables_of((ROOT / folder / "table.md").read_text())
        found = {row[0]: dict(zip(made[0], row, strict=True)) for row in made[1:]}
        for shots, *cells in rows:
            row, (paper, *ours) = found.get(shots), cells[first - 1 : last - 1]
            assert tuple(map(float, paper.split(" ± "))) == RECIPES[name].published[int(shots)]
            assert ours == ([row["best"], row["last"], row["n"]] if row else ["-"] * 3)[: len(ours)]


def last_of(table: Path) -> dict[str, str]:
    """The accuracy at the last epoch of each N in a table.md."""
    ((head, *rows),) = tables_of(table.read_text())
    return {row["N"]: row["last"] for row in (dict(zip(head, row, strict=True)) for row in rows)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_numbers_with_a_link_to_a_table_are_in_it(page):
    """A number that is such a link is that table's, at the N of its row; so are a row's columns N = ... beside one."""
    tables = tables_of(page.read_text())
    for row in [dict(zip(head, row, strict=True)) for head, *rows in tables for row in rows]:
        shots = {column: column.removeprefix("N = ") for column in row if column.startswith("N = ")}
        for text, target in re.findall(r"\[([^]]*)\]\(([^)]*/table\.md)\)", " ".join(row.values())):
            last = last_of(page.parent / target)
            expected = {c: last.get(n, "-") for c, n in shots.items()} if text == "table" else last[row["N"]]
            assert expected == ({c: row[c] for c in shots} if text == "table" else text), row


def test_networks_are_the_models():
    for row in method("parameters, 10 classes"):
        architecture = ARCHITECTURES[re.search(r"`(.*)`", row["network"])[1]]
        assert tuple(numbers(row[f"block {b}"]) for b in range(5)) == architecture.widths
        hidden, width = architecture.hidden, architecture.width_after(-1)
        batchnorm = f"BatchNorm1d({hidden}), " if architecture.batchnorm else ""
        assert row["classifier"] == f"Linear({width}, {hidden}), {batchnorm}Linear({hidden}, C)"
        counts = {classes: parameter_count(BlockwiseVGG(architecture, classes)) for classes in (10, 100)}
        assert all(row[f"parameters, {classes} classes"] == f"{count:,}" for classes, count in counts.items())
    teacher = frozen_teacher(BlockwiseVGG(ARCHITECTURES["vgg16"], 10))
    student = torch.nn.Sequential(*scions(teacher, torch.Generator()))
    shared, grafted = parameter_count(teacher.blocks[:3]), parameter_count(student)
    counts = (shared, grafted, sum(map(parameter_count, adapters_of(student))), shared + grafted)
    assert all(f"{n:,}" in METHOD for n in counts) and f"{len(student.state_dict())} tensors" in METHOD


def test_data_are_the_codes_and_those_of_the_results():
    for row in method("mean"):
        dataset = open_dataset(row["data set"], ROOT / "data/raw")
        written = [tuple(map(float, row[column].split(", "))) for column in ("mean", "standard deviation")]
        assert written == [dataset.normalization.mean, dataset.normalization.std]
        assert f"{dataset.subset_seed} for {dataset.name}" in METHOD
    for row in method("sha256"):
        result = results.read(ROOT / f"benchmarks/results/{row['data set']}/results/{row['N']}-shot/trial-0.json")
        assert row["sha256"] == f"`{result['setting']['subset_sha256']}`"
    assert len(method("sha256")) == 6
