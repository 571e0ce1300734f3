"""The figure: what students lose, over N, ours and the paper's, made from result files only.

    python -m experiments.figure benchmarks/results/CIFAR10 benchmarks/results/CIFAR100 --to accuracy.svg

A panel for each folder of results. Points are means over trials, error bars sample standard deviations (none for one
trial). The paper's students have another teacher than ours, so a panel shows each student minus its own teacher. Where
the paper does not report its teacher, as on CIFAR100, the panel shows test accuracies instead and says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import results
from experiments.drawing import decoration, file_of, plain_matplotlib
from experiments.results import Result
from experiments.setting import student_name
from experiments.tables import Row, is_papers, markdown, rows
from grafting.recipes import recipe_of
from grafting.stages import GRAFTING
from utils import files
from utils.argument_types import path
from utils.errors import BadInput

if TYPE_CHECKING:  # matplotlib takes half a second to import, and most commands draw nothing
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")
PANEL_WIDTH, HEIGHT = 4.6, 3.7  # inches
OURS, PAPER = "#0072B2", "#D55E00"  # Okabe and Ito: told apart by colour-blind readers, and in grey by shape
LAST = "#56B4E9"
SETTINGS = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "svg.hashsalt": "fskd",  # the same names in the file each time
}  # fmt: skip
STYLES = {  # in the order in which they are drawn; a teacher is a level, the others are points with error bars
    "paper, best": {"color": PAPER, "fmt": "s--", "mfc": "white"},
    "ours, last": {"color": LAST, "fmt": "^-"},
    "ours, best": {"color": OURS, "fmt": "o-"},
    "our teacher": {"color": OURS, "linestyle": "-."},
    "each student's own teacher": {"color": "black", "linestyle": ":"},
}
LEGEND = ("ours, best", "ours, last", "our teacher", "paper, best", "each student's own teacher")
Line = Sequence[tuple[int, float, float]]  # N, mean and standard deviation in percent


@dataclass(frozen=True)
class Panel:
    """One folder of results, as drawn.

    table: its rows. published: the paper's test accuracy (mean, standard deviation) in percent by N; none for other
    methods than the paper's. published_teacher: test accuracy of the paper's teacher in percent, where it is reported.
    """

    title: str
    table: list[Row]
    published: Mapping[int, tuple[float, float]]
    published_teacher: float | None

    @property
    def shots(self) -> list[int]:
        """Every N of ours and of the paper."""
        return sorted({row.shots for row in self.table} | set(self.published))

    @property
    def is_difference(self) -> bool:
        """Whether students are drawn minus their teachers, which the accuracy of the paper's teacher is needed for."""
        return not self.published or self.published_teacher is not None

    @property
    def accuracies(self) -> dict[str, Line]:
        """Test accuracies in percent over N, by name. A deviation that is not known is 0."""
        measured = [row for row in self.table if row.best is not None]
        found: dict[str, Line] = {
            "ours, best": [(row.shots, row.best, row.best_deviation or 0.0) for row in measured],
            "ours, last": [(row.shots, row.last, row.last_deviation or 0.0) for row in measured],
            "our teacher": [(row.shots, row.teacher, 0.0) for row in self.table],
            "paper, best": [(n, *published) for n, published in self.published.items()],
        }
        if self.published_teacher is not None:
            found["paper's teacher"] = [(n, self.published_teacher, 0.0) for n in self.published]
        return {name: line for name, line in found.items() if line}

    @property
    def lines(self) -> dict[str, Line]:
        """What is drawn, by its name in the legend: accuracies, or what they are above their own teachers."""
        if not self.is_difference:
            return self.accuracies
        to_teacher = {
            "ours, best": {row.shots: row.to_teacher for row in self.table},
            "ours, last": {row.shots: row.last_to_teacher for row in self.table},
            "paper, best": {n: mean - self.published_teacher for n, (mean, _) in self.published.items()},
        }
        return {
            **{
                name: [(n, to_teacher[name][n], deviation) for n, _, deviation in line]
                for name, line in self.accuracies.items()
                if name in to_teacher
            },
            "each student's own teacher": [(n, 0.0, 0.0) for n in self.shots],
        }


def panel(found: list[Result]) -> Panel:
    """The panel of one folder's results. Raises BadInput where they do not belong in one table."""
    setting, student = found[0]["setting"], student_name(found[0]["setting"])
    recipe = recipe_of(setting["dataset"])
    published = is_papers(found[0], recipe)
    table = rows(found, recipe)
    other = "" if student == GRAFTING.name else f", {student}"
    return Panel(
        title=f"{setting['dataset']}{other} ({_trials(table)})",
        table=table,
        published=recipe.published if published else {},
        published_teacher=recipe.published_teacher if published else None,
    )


def _trials(table: list[Row]) -> str:
    """ "1 trial", "5 trials", "2 to 5 trials"."""
    least, most = min(row.trials for row in table), max(row.trials for row in table)
    return f"{most} trial{'' if most == 1 else 's'}" if least == most else f"{least} to {most} trials"


@plain_matplotlib(SETTINGS)
def draw(panels: Sequence[Panel], kind: str) -> bytes:
    """The figure as "png" or "svg". The same panels give the same bytes with the same version of matplotlib."""
    from matplotlib.figure import Figure

    width = PANEL_WIDTH * len(panels)
    figure = Figure(figsize=(width, HEIGHT))
    drawn = {}
    for axes, shown in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        drawn |= _draw_panel(axes, shown)
    figure.subplots_adjust(left=0.68 / width, right=1 - 0.42 / width, bottom=0.26, top=0.87, wspace=0.32)
    columns = 3 if len(panels) == 1 else len(drawn)
    figure.legend(drawn.values(), drawn, loc="lower center", ncols=columns, frameon=False, columnspacing=1.4)
    return file_of(figure, kind, Title="Students over N", Description=numbers(panels))


def _draw_panel(axes: Axes, shown: Panel) -> dict[str, object]:
    """Draw one panel. Returns what it shows, by its name in the legend."""
    drawn, lines = {}, shown.lines
    for name in (name for name in STYLES if name in lines):
        shots, means, deviations = map(list, zip(*lines[name], strict=True))
        if "linestyle" in STYLES[name]:
            drawn[name] = axes.axhline(means[0], linewidth=1, **STYLES[name])
            beside = axes.get_yaxis_transform()  # x from 0 to 1 across the panel, y in percent
            text = {"va": "center", "fontsize": 8, "color": STYLES[name]["color"]}
            axes.text(1.01, means[0], f"{means[0]:.2f}" if means[0] else "0", transform=beside, **text)
        else:
            style = {"markersize": 4.5, "capsize": 2, "elinewidth": 0.9, **STYLES[name]}
            drawn[name] = axes.errorbar(shots, means, deviations, **style)
    what = "student minus its teacher" if shown.is_difference else "accuracies: the paper's teacher is not reported"
    label(axes, shown.shots, f"{shown.title}\n{what}")
    axes.set_ylabel("points of test accuracy" if shown.is_difference else "test accuracy, %")
    return {name: drawn[name] for name in LEGEND if name in drawn}


def label(axes: Axes, shots: Sequence[int], title: str) -> None:
    """Title, accuracies up to 100% at most, ticks at every N, and a number at each as far as they do not touch."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    numbers = ["" if n in (7, 9) and {n - 1, n + 1} <= set(shots) else str(n) for n in shots]
    axes.set_xticks(shots, numbers)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("N, images per class")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    style = {"fontsize": 9, "fontweight": "bold", "parse_math": False}  # a folder may have $ in its name
    axes.set_title(title, loc="left", **style)


def numbers(panels: Sequence[Panel]) -> str:
    """What the figure shows, as text: each panel's table."""
    return "\n\n".join(f"{shown.title}\n{markdown(shown.table)}" for shown in panels)


def read_panels(folders: Sequence[Path]) -> list[Panel]:
    """A panel for each folder. Raises BadInput for one without results."""
    found = [(folder, results.read_all(folder)) for folder in folders]
    for folder, there in found:
        if not there:
            raise BadInput(f"{folder}/results: no results found; name a folder that a sweep has written")
    return [panel(there) for _, there in found]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.figure", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", type=path, nargs="+", metavar="FOLDER", help="output directories, a panel for each")
    parser.add_argument("--to", type=path, required=True, metavar="FILE", help="picture to write, .png or .svg")
    args = parser.parse_args(argv)
    status = 2

    def refuse(line: str) -> None:
        sys.stderr.write(f"experiments.figure: {line}\n")

    try:
        kind = args.to.suffix.removeprefix(".")
        if kind not in FORMATS:
            raise BadInput(f"--to {args.to}: the figure is a .png or a .svg file; give it such a name")
        panels = read_panels(args.folders)
        with decoration(str(args.to), refuse):
            files.write_bytes(args.to, draw(panels, kind))
            status = 0
    except BadInput as error:
        refuse(str(error))
    return status


if __name__ == "__main__":
    sys.exit(main())
