"""The table over several few-shot subsets (--subset_seeds), made from result files only.

Each subset has an output directory of its own, `subset-<seed>`, inside the run's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import results, tables
from experiments.results import Result
from experiments.setting import Setting
from experiments.setting import require_comparable as require_same_setting
from experiments.tables import Row
from grafting.recipes import recipe_of
from utils import files, locks
from utils.errors import BadInput

if TYPE_CHECKING:
    from experiments.job import Job

TABLE = "subsets.md"
FIELDS = ("subset_seed", "subset_sha256", "first_images_sha256")  # of a setting: these say which subset it is
DEVIATION = (
    "±: sample standard deviation over all cells of an N (n: subsets x trials), so over subsets, initialisation, order"
    " and views, not over teachers or test images."
)
OF_PAPER = " The paper's ± is over trials of one subset."
WITHOUT_BEST = " best: left out, because --best_of is not the same in all cells."


def folder_of(output_dir: Path, seed: int) -> Path:
    return output_dir / f"subset-{seed}"


def folders(output_dir: Path) -> list[Path]:
    """The folders of the subsets that have results."""
    found = [path for path in output_dir.glob("subset-*") if path.name.removeprefix("subset-").isdecimal()]
    return sorted(
        (path for path in found if results.paths(path)), key=lambda path: int(path.name.removeprefix("subset-"))
    )


def read(output_dir: Path, except_for: Collection[Path] = ()) -> list[Result]:
    """Every result of every subset, except for some files. Raises BadInput for one that is in another's folder."""
    found = []
    for folder in folders(output_dir):
        for result in results.read_all(folder, except_for):
            seed = result["setting"].get("subset_seed")
            if folder != folder_of(output_dir, seed):
                raise BadInput(f"{folder}: holds results of subset {seed}; rename it to subset-{seed}")
            found.append(result)
    return found


def name_of(setting: Setting) -> str:
    """The name of a cell among those of several subsets."""
    return f"subset {setting['subset_seed']}, {results.cell_name(setting['shots'], setting['trial'])}"


def require_before(jobs: Sequence[Job]) -> None:
    """Raise BadInput now if the table over the subsets of these jobs could not be made at the end."""
    output_dir, cells = jobs[0].output_dir.parent, [cell for job in jobs for cell in job.cells]
    there = read(output_dir, [cell.result for cell in cells])
    require_comparable([result["setting"] for result in there] + [cell.setting for cell in cells])
    files.require_writable(output_dir, TABLE)


def require_comparable(settings: Sequence[Setting]) -> None:
    """Raise BadInput if cells of these settings do not belong in one table.

    Cells of different subsets may also differ in --best_of, which does not change the training.
    """
    of_subset: dict[int, dict[str, Setting]] = {}
    for setting in settings:
        of_subset.setdefault(setting["subset_seed"], {})[name_of(setting)] = setting
    for one_subset in of_subset.values():
        require_same_setting(one_subset)
    require_same_setting({name_of(setting): _across_subsets(setting) for setting in settings})


def _across_subsets(setting: Setting) -> Setting:
    """What must agree between cells of different subsets."""
    schedule = [{name: step[name] for name in step if name != "selects_among"} for step in setting["schedule"]]
    return {name: value for name, value in setting.items() if name not in FIELDS} | {"schedule": schedule}


def write(output_dir: Path) -> tuple[list[Row], str]:
    """Write subsets.md from the result files of all subsets. Returns its rows, and its text with remarks.

    Raises BadInput if the results do not belong in one table.
    """
    with locks.hold(output_dir / ".table.lock", timeout=-1):  # two processes may end at the same time
        found = read(output_dir)
        require_comparable([result["setting"] for result in found])
        table = rows(found)
        text = markdown(table, found)
        files.write_text(output_dir / TABLE, text + "\n")
    return table, "\n".join([text, *tables.mixed(found)])


def rows(found: Sequence[Result]) -> list[Row]:
    """A row for each N, over subsets and trials. Without "best" where cells choose it among different epochs."""
    recipe = recipe_of(found[0]["setting"]["dataset"])
    table = [tables.row(shots, cells, recipe) for shots, cells in tables.by_shots(found).items()]
    if len({result["setting"]["schedule"][-1].get("selects_among") for result in found}) > 1:
        table = [replace(row, best=None, best_deviation=None, to_teacher=None) for row in table]
    return table


def markdown(table: list[Row], found: Sequence[Result]) -> str:
    """The table as Markdown, and below it what n and the deviation are over."""
    counts = {shots: _count(cells) for shots, cells in tables.by_shots(found).items()}
    line = DEVIATION
    if any(row.paper is not None for row in table):
        line += OF_PAPER
    if any(row.best is None and row.last is not None for row in table):
        line += WITHOUT_BEST
    return f"{tables.without_line(table, {'n': lambda row: counts[row.shots]})}\n\n{line}"


def _count(cells: Sequence[Result]) -> str:
    """ "5 x 3", subsets x trials; "14 of 5 x 3 (1 failed)" where not all of them have a result."""
    done = sum(result["status"] == "done" for result in cells)
    subsets = len({result["setting"]["subset_seed"] for result in cells})
    trials = 1 + max(result["setting"]["trial"] for result in cells)
    part = "" if done == subsets * trials else f"{done} of "
    failed = f" ({len(cells) - done} failed)" if done < len(cells) else ""
    return f"{part}{subsets} x {trials}{failed}"
