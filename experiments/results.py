"""Result files of cells, and the table made from them alone."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import files
from utils.errors import BadInput

KIND = "a result of fskd; remove it to have the cell redone"


def path_of(output_dir: Path, shots: int, trial: int) -> Path:
    return output_dir / "results" / f"{shots}-shot" / f"trial-{trial}.json"


def read(path: Path) -> dict[str, Any]:
    """One cell's result. Raises BadInput for a torn or foreign file."""
    result = files.read_json(path, KIND)
    with files.reading(path, KIND):
        if result["status"] not in ("done", "failed"):
            raise ValueError(f"status {result['status']!r}")
        result["setting"]["shots"], result["setting"]["trial"], result["teacher"]["accuracy"]
        if result["status"] == "done":
            float(result["best"]), float(result["last"])
    return result


def paths(output_dir: Path) -> list[Path]:
    """Where results lie under `output_dir`."""
    return [
        path
        for path in (output_dir / "results").glob("*-shot/trial-*.json")
        if re.fullmatch(r"\d+-shot", path.parent.name) and re.fullmatch(r"trial-\d+\.json", path.name)
    ]


def read_all(output_dir: Path) -> list[dict[str, Any]]:
    """Every result under `output_dir`, by N and trial."""
    return sorted(
        map(read, paths(output_dir)), key=lambda result: (result["setting"]["shots"], result["setting"]["trial"])
    )


@dataclass(frozen=True)
class Row:
    """One N of the table. Accuracies in percent; spreads are sample standard deviations, None for one trial."""

    shots: int
    trials: int
    failed: int
    best: float | None
    best_spread: float | None
    last: float | None
    last_spread: float | None
    teacher: float
    paper: float | None
    paper_spread: float | None
    to_teacher: float | None
    paper_to_teacher: float | None


def rows(
    results: list[dict[str, Any]],
    published: Mapping[int, tuple[float, float]],
    published_teacher: float | None,
) -> list[Row]:
    """The table's rows. Raises BadInput where results of different settings would be averaged."""
    _require_unmixed(results)
    table = []
    for shots in sorted({result["setting"]["shots"] for result in results}):
        cells = [result for result in results if result["setting"]["shots"] == shots]
        done = [cell for cell in cells if cell["status"] == "done"]
        best, best_spread = _mean_and_spread([cell["best"] for cell in done])
        last, last_spread = _mean_and_spread([cell["last"] for cell in done])
        teacher = cells[0]["teacher"]["accuracy"]
        paper, paper_spread = published.get(shots, (None, None))
        known = paper is not None and published_teacher is not None
        table.append(
            Row(
                shots,
                len(done),
                len(cells) - len(done),
                best,
                best_spread,
                last,
                last_spread,
                teacher,
                paper,
                paper_spread,
                None if best is None else best - teacher,
                paper - published_teacher if known else None,
            )
        )
    return table


def _require_unmixed(results: list[dict[str, Any]]) -> None:
    for result in results[1:]:
        first, other = results[0]["setting"], result["setting"]
        for name in ("dataset", "seed", "subset_seed", "teacher_sha256"):
            if first.get(name) != other.get(name):
                raise BadInput(
                    f"{other['shots']}-shot trial {other['trial']} was made with another {name.replace('_', ' ')} than"
                    f" {first['shots']}-shot trial {first['trial']}; keep them in different --output_dir"
                )


def remarks(results: list[dict[str, Any]]) -> list[str]:
    """What a reader of the table should know: trials that are missing, cells of unlike machines."""
    trials = max((result["setting"]["trial"] for result in results), default=0) + 1
    lines = []
    for shots in sorted({result["setting"]["shots"] for result in results}):
        there = {result["setting"]["trial"] for result in results if result["setting"]["shots"] == shots}
        if missing := sorted(set(range(trials)) - there):
            lines.append(f"gap: N = {shots} lacks trial {', '.join(map(str, missing))}")
    for what in ("device", "threads", "torch"):
        values = Counter(str(result.get("machine", {}).get(what)) for result in results)
        if len(values) > 1:
            lines.append(f"mixture: {what} " + ", ".join(f"{value} ({n} cells)" for value, n in values.items()))
    return lines


def _mean_and_spread(values: list[float]) -> tuple[float | None, float | None]:
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


HEADER = ("N", "best", "last", "n", "teacher", "paper", "best - teacher", "paper - its teacher")


def markdown(table: list[Row]) -> str:
    """The table for people: percent, rounded to two places, a dash for what is not there."""
    body = [
        (
            str(row.shots),
            _with_spread(row.best, row.best_spread),
            _with_spread(row.last, row.last_spread),
            f"{row.trials}" + (f" ({row.failed} failed)" if row.failed else ""),
            f"{row.teacher:.2f}",
            _with_spread(row.paper, row.paper_spread),
            _signed(row.to_teacher),
            _signed(row.paper_to_teacher),
        )
        for row in table
    ]
    widths = [max(2, *(len(line[i]) for line in (HEADER, *body))) for i in range(len(HEADER))]  # `:` is no separator
    lines = [HEADER, tuple("-" * (width - 1) + ":" for width in widths), *body]
    return "\n".join(
        "| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _with_spread(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def comma_separated(table: list[Row]) -> str:
    """The table for machines, unrounded."""
    text = io.StringIO()
    names = list(Row.__dataclass_fields__)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in table)
    return text.getvalue()


def write_table(output_dir: Path, table: list[Row]) -> str:
    """Write table.md and table.csv; return the first."""
    text = markdown(table)
    files.write_text(output_dir / "table.md", text + "\n")
    files.write_text(output_dir / "table.csv", comma_separated(table))
    return text
