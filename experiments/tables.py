"""The table over N, made from result files only."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields

from experiments.results import Result, name_of
from experiments.setting import require_comparable, student_name
from grafting.recipes import Recipe
from grafting.stages import GRAFTING
from utils.text import markdown_table

DEVIATION = (
    "±: sample standard deviation over initialisation, order and views, not over subsets, teachers or test images."
)


@dataclass(frozen=True)
class Row:
    """One N of the table. Accuracies in percent; deviations are sample standard deviations, None for one trial.

    teacher: mean over the cells, since machines round differently. to_teacher, last_to_teacher: best and last minus the
    teacher of the same cell.
    """

    shots: int
    trials: int
    failed: int
    best: float | None
    best_deviation: float | None
    last: float | None
    last_deviation: float | None
    teacher: float
    paper: float | None
    paper_deviation: float | None
    to_teacher: float | None
    last_to_teacher: float | None
    paper_to_teacher: float | None


def rows(results: list[Result], recipe: Recipe) -> list[Row]:
    """The table's rows. Raises BadInput if results of different settings would be averaged. recipe: of the data set."""
    require_comparable({name_of(result): result["setting"] for result in results})
    return [row(shots, cells, recipe) for shots, cells in by_shots(results).items()]


def by_shots(results: Sequence[Result]) -> dict[int, list[Result]]:
    """The cells of each N, the smallest N first."""
    every_n = sorted({result["setting"]["shots"] for result in results})
    return {shots: [result for result in results if result["setting"]["shots"] == shots] for shots in every_n}


def row(shots: int, cells: list[Result], recipe: Recipe) -> Row:
    """The row of one N, over these cells of it."""
    done = [cell for cell in cells if cell["status"] == "done"]
    best, best_deviation = _mean_and_deviation([cell["best"] for cell in done])
    last, last_deviation = _mean_and_deviation([cell["last"] for cell in done])
    to_teacher, last_to_teacher = (
        _mean_and_deviation([cell[epoch] - cell["teacher"]["accuracy"] for cell in done])[0]
        for epoch in ("best", "last")
    )
    paper, paper_deviation = recipe.published.get(shots, (None, None)) if is_papers(cells[0], recipe) else (None, None)
    known = paper is not None and recipe.published_teacher is not None
    return Row(
        shots=shots,
        trials=len(done),
        failed=len(cells) - len(done),
        best=best,
        best_deviation=best_deviation,
        last=last,
        last_deviation=last_deviation,
        teacher=statistics.fmean(cell["teacher"]["accuracy"] for cell in cells),
        paper=paper,
        paper_deviation=paper_deviation,
        to_teacher=to_teacher,
        last_to_teacher=last_to_teacher,
        paper_to_teacher=paper - recipe.published_teacher if known else None,
    )


def is_papers(result: Result, recipe: Recipe) -> bool:
    """Whether the paper has numbers for this student and these networks, which older files do not name."""
    is_grafted = student_name(result["setting"]) == GRAFTING.name
    return is_grafted and result.get("networks", recipe.networks) == recipe.networks


def remarks(results: list[Result]) -> list[str]:
    """What a reader of the table should know: missing trials, cells from different machines."""
    trials = max((result["setting"]["trial"] for result in results), default=0) + 1
    shots_of_missing: dict[tuple[int, ...], list[int]] = {}
    for shots, cells in by_shots(results).items():
        present = {cell["setting"]["trial"] for cell in cells}
        if missing := tuple(sorted(set(range(trials)) - present)):
            shots_of_missing.setdefault(missing, []).append(shots)
    missing = [f"N = {_listed(n)}, trial {_listed(missing)}" for missing, n in shots_of_missing.items()]
    return [*([f"missing: {'; '.join(missing)}"] if missing else []), *mixed(results)]


def mixed(results: list[Result]) -> list[str]:
    """Where the cells are from different machines or versions of torch, how many are of each."""
    lines = []
    processes = [process for result in results for process in (result, *result.get("earlier_processes", ()))]
    for what in ("device", "threads", "torch"):
        counts = Counter(str(process.get("machine", {}).get(what)) for process in processes)
        if len(counts) > 1:
            lines.append(f"mixed results: {what} " + ", ".join(f"{value} ({n})" for value, n in counts.items()))
    return lines


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _mean_and_deviation(values: list[float]) -> tuple[float | None, float | None]:
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


COLUMNS: dict[str, Callable[[Row], str]] = {
    "N": lambda row: str(row.shots),
    "best": lambda row: _with_deviation(row.best, row.best_deviation),
    "last": lambda row: _with_deviation(row.last, row.last_deviation),
    "n": lambda row: f"{row.trials}" + (f" ({row.failed} failed)" if row.failed else ""),
    "teacher": lambda row: f"{row.teacher:.2f}",
    "best - teacher": lambda row: _signed(row.to_teacher),
    "last - teacher": lambda row: _signed(row.last_to_teacher),
    "paper": lambda row: _with_deviation(row.paper, row.paper_deviation),
    "paper - its teacher": lambda row: _signed(row.paper_to_teacher),
}


def markdown(table: list[Row]) -> str:
    """The table as Markdown. A line below says what the deviation is over."""
    text = without_line(table)
    return f"{text}\n\n{DEVIATION}" if any(row.trials > 1 for row in table) else text


def without_line(table: list[Row], other: Mapping[str, Callable[[Row], str]] | None = None) -> str:
    """The table as Markdown: percent, rounded to two decimals, a dash for a missing value.

    The paper's columns are left out where the paper has no number. other: functions in place of those of COLUMNS.
    """
    columns = {name: [text(row) for row in table] for name, text in {**COLUMNS, **(other or {})}.items()}
    columns = {name: cells for name, cells in columns.items() if not name.startswith("paper") or set(cells) != {"-"}}
    widths = [max(2, *map(len, (name, *cells))) for name, cells in columns.items()]  # "-:" is the shortest
    lines = [tuple(columns), tuple("-" * (width - 1) + ":" for width in widths), *zip(*columns.values(), strict=True)]
    return markdown_table([f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)] for line in lines)


def _with_deviation(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def comma_separated(table: list[Row]) -> str:
    """The table as CSV, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in fields(Row))
    writer.writerows(map(astuple, table))
    return text.getvalue()
