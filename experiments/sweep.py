"""A sweep: which cells to run, in which order, each by one process at a time."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from acceleration.feature_cache import CachedTeacher
from experiments import results, subsets
from experiments.cell import BAR, Cell
from experiments.job import Job
from experiments.pace import Pace, counted
from experiments.results import Result
from experiments.setting import require_comparable
from experiments.summary import write_summary
from experiments.training import require_trainable
from models.logits import logits_from
from utils import files, locks
from utils.errors import BadInput
from utils.precision import arithmetic, cache_dtype
from utils.text import bar

SUMMARY_SECONDS = 30.0  # between tables of unfinished sweeps: making one takes longer than a cell of CIFAR10 on a GPU
LITTLE = 0.2  # of the way from chance to 100%; a network of other data with as many classes stays below


def run(jobs: Sequence[Job]) -> bool:
    """Run the cells of the jobs that are neither done nor running. Returns False if every cell was done already.

    The jobs share teacher, grafted blocks and precision.

    Raises BadInput before any cell is run, if there is something wrong with one of them. Several processes may run the
    same job, intentionally or by mistake: each takes the next cell that is neither done nor running. A running cell
    holds a file lock, which the operating system releases if the process is killed.
    """
    first, device = jobs[0], jobs[0].device  # BadInput for a wrong device, before images and teacher are obtained
    every_cell = [cell for job in jobs for cell in job.cells]
    if first.args.subset_seeds:
        subsets.require_before(jobs)
    if first.args.fresh:
        _remove_old(jobs, every_cell)
    left = [_left(job) for job in jobs]
    waiting = [cell for cells in left for cell in cells]
    _require_writable(waiting)
    for job, cells in zip(jobs, left, strict=True):
        if done := len(job.cells) - len(cells):
            folder = f"{job.output_dir}: " if len(jobs) > 1 else ""
            job.announce(f"{folder}{done} of {len(job.cells)} cells are done already; --fresh runs them again")
    if not waiting:
        return False
    for job in jobs:
        require_trainable(job)
    with arithmetic(first.args.precision, device):
        teacher, record = _prepared(first, waiting)
        of_all = Pace(first, waiting, teacher, record["seconds"]) if first.args.subset_seeds else None
        for job, cells in ((job, cells) for job, cells in zip(jobs, left, strict=True) if cells):
            _run_cells(job, cells, teacher, record, of_all or Pace(job, cells, teacher, record["seconds"]))
    return True


def _require_writable(cells: Sequence[Cell]) -> None:
    """Raise BadInput now rather than after hours if what the cells write could not be written or locked."""
    names: dict[Path, set[str]] = {}
    for cell in cells:
        for path in (cell.job.output_dir / "table.csv", cell.job.output_dir / "table.md", *cell.written):
            names.setdefault(path.parent, set()).add(path.name)
    for directory, of_files in names.items():
        files.require_writable(directory, *of_files)
        locks.require(directory)


def _remove_old(jobs: Sequence[Job], cells: Sequence[Cell]) -> None:
    """Remove what --fresh replaces, of all jobs; nothing if one of them could not be run or is running."""
    for job in jobs:
        if job.process.count > 1:
            raise BadInput(f"--fresh: not under torchrun; remove {job.output_dir / 'results'} and leave --fresh out")
        _require_comparable(job, except_for=job.cells)
    for cell in cells:
        cell.require_free_students()
    _require_writable(cells)
    try:
        for cell in cells:
            with cell.lock():
                pass
        for cell in cells:
            cell.remove()
    except locks.Timeout:
        raise BadInput(f"--fresh: another process is running the cell of {cell.result}; stop it first") from None


def _left(job: Job) -> list[Cell]:
    """The cells that have no result. Raises BadInput where one could not be run or continued."""
    left = []
    for cell in job.cells:
        if cell.is_done():
            cell.checkpoint.unlink(missing_ok=True)  # of a cell that was killed just after its last write
        else:
            left.append(cell)
    _require_comparable(job)
    for cell in left:
        cell.require_free_students()
        cell.require_own_checkpoint()
    return left


def _require_comparable(job: Job, except_for: Sequence[Cell] = ()) -> None:
    """Raise BadInput now if the table at the end could not be made. except_for: cells that will be run again."""
    there = results.read_all(job.output_dir, [cell.result for cell in except_for])
    settings = {results.name_of(result): result["setting"] for result in there}
    for cell in job.cells:
        settings.setdefault(f"{cell.shots}-shot of this command", cell.setting)
    require_comparable(settings)


def _prepared(job: Job, left: Sequence[Cell]) -> tuple[CachedTeacher, dict[str, Any]]:
    """The teacher with room for the features of all cells that are left, and its entry in the result files."""
    images = {(cell.shots, cell.job.subset_seed): cell.images for cell in left}
    in_order = [images[key] for key in sorted(images)]
    dtype = cache_dtype(job.args.precision)
    teacher = CachedTeacher(job.network, job.networks, job.dataset, in_order, job.memory, dtype)
    started, count = perf_counter(), len(teacher.test_labels)
    job.announce(f"computing the teacher's features and test accuracy on {count:,} images")
    with logits_from(job.teacher_file):
        accuracy = teacher.accuracy(nn.Identity(), len(teacher.blocks))
    chance = 100 / teacher.classes
    better = "little" if accuracy > chance else "no"
    little = f"; {better} better than chance ({chance:.0f}%): was it trained on these data?"
    doubt = little if accuracy < chance + LITTLE * (100 - chance) else ""
    job.announce(f"teacher {job.teacher_file}: test accuracy {accuracy:.2f}%{doubt}")
    record = {"file": str(job.teacher_file), "accuracy": accuracy, "test_images": count}
    return teacher, {**record, "seconds": perf_counter() - started}


def _run_cells(job: Job, cells: Sequence[Cell], teacher: CachedTeacher, record: dict[str, Any], pace: Pace) -> None:
    teacher.networks = job.networks  # jobs may differ in the student, not in the blocks that are grafted
    all_shots = sorted({cell.shots for cell in cells})
    of_subset = f" of subset {job.subset_seed}" if job.args.subset_seeds else ""
    job.announce(f"{counted(len(cells))}{of_subset}, of N = {', '.join(map(str, all_shots))}")
    summarized = perf_counter()
    with bar(desc="all cells", total=len(cells), unit="cell", bar_format=BAR) as cells_done:
        for cell in cells:
            pace.begin(cell)
            said = cell.run(teacher, record, pace)
            pace.end()
            cells_done.update()
            rest = pace.rest() if cell.was_run else ""
            job.report(f"{cell.name}: {said}{rest}")
            cells_done.set_postfix_str(rest.removeprefix("; "), refresh=False)
            if perf_counter() - summarized > SUMMARY_SECONDS or cell is cells[-1]:
                _summarize_so_far(job)
                summarized = perf_counter()


def _summarize_so_far(job: Job) -> None:
    """Write table and figure of the results that there are. Where that fails, say why; the cells go on."""
    try:
        if results.paths(job.output_dir):
            write_summary(job.output_dir, job.report_once)
    except (BadInput, OSError) as error:
        job.report(f"the table could not be written: {error}")


def results_of(job: Job) -> list[Result]:
    """The results of the job's cells that there are, by N and trial."""
    cells = sorted(job.cells, key=lambda cell: (cell.shots, cell.trial))
    return [results.read(cell.result) for cell in cells if cell.result.exists()]


def any_failed(jobs: Sequence[Job]) -> bool:
    return any(result["status"] == "failed" for job in jobs for result in results_of(job))
