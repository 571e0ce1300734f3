"""--subset_seeds: the cells are those of --subset_seed, each subset in a folder of its own, with one table over all."""

from pathlib import Path

import pytest
from few_results import PHASE, cell
from small import numbers, small_job

import train_fskd
from experiments import commands, results, subsets, sweep
from experiments.job import Job
from utils import files
from utils.errors import BadInput

RUN = ("--nshot", "1", "2", "--trials", "1")


def command(*arguments):
    return train_fskd.main(["--dataset", "Folder", *arguments])


def write(output_dir, seed, shots, trial, last=None, **setting):
    """A result in the folder of its subset."""
    fields = {"dataset": "D", "subset_seed": seed, "subset_sha256": f"{seed}, {shots}"} | setting
    result = cell(shots, trial, last, last, **fields)
    files.write_json(results.path_of(subsets.folder_of(output_dir, seed), shots, trial), result)


def test_cells_are_those_of_one_subset_at_a_time_and_the_table_is_over_all(with_teacher, capsys):
    assert command(*RUN, "--subset_seeds", "7", "6", "--output_dir", "both") == 0
    printed = capsys.readouterr().out
    table = Path("both/subsets.md").read_text()
    assert table in printed and "| 2 x 1 |" in table and subsets.OF_PAPER not in table
    assert "\nsubset 6, 1-shot trial 0: best " in printed and "2 cells of subset 7, of N = 1, 2" in printed
    for seed in ("6", "7"):
        assert command(*RUN, "--subset_seed", seed, "--output_dir", seed) == 0
        assert numbers(Path(seed)) == numbers(Path("both", f"subset-{seed}"))
    before = {path: path.stat().st_mtime_ns for path in Path("both").rglob("trial-0.json")}
    args = train_fskd.arguments(["--dataset", "Folder", "--subset_seeds", "6", "7", "--output_dir", "both"])
    assert commands.how_to_continue(Job(args)).startswith("cells done in both: 4; the same command")
    Path("both/subsets.md").unlink()
    capsys.readouterr()
    assert command(*RUN, "--subset_seeds", "6", "7", "--output_dir", "both") == 0
    assert "both/subset-7: 2 of 2 cells are done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before and Path("both/subsets.md").read_text() == table
    assert command("--table", "--output_dir", "both") == 0
    assert capsys.readouterr().out == f"{table}written in both: subsets.md\n"


def test_deviation_and_count_are_over_subsets_and_trials(tmp_path):
    for seed, trial, last in ((1, 0, 80.0), (1, 1, 82.0), (5, 0, 84.0), (5, 1, 86.0)):
        write(tmp_path, seed, 1, trial, last)
    write(tmp_path, 1, 10, 0, 90.0), write(tmp_path, 5, 10, 0)
    write(tmp_path, 1, 10, 1, 91.0)
    rows, text = subsets.write(tmp_path)
    assert (rows[0].last, rows[0].last_deviation) == (83.0, pytest.approx((20 / 3) ** 0.5)) and rows[1].last == 90.5
    one, ten = ([cell.strip() for cell in line.split("|")] for line in text.splitlines()[2:4])
    assert one[2:5] == ["83.00 ± 2.58", "83.00 ± 2.58", "2 x 2"]
    assert ten[4] == "2 of 2 x 2 (1 failed)" and text.endswith(subsets.DEVIATION)


def test_cells_that_choose_the_best_epoch_differently_have_only_the_last_in_common(tmp_path):
    write(tmp_path, 1, 1, 0, 80.0)
    write(tmp_path, 2, 1, 0, 82.0, schedule=[{**PHASE, "selects_among": 1}])
    (row,), text = subsets.write(tmp_path)
    assert (row.best, row.to_teacher, row.last) == (None, None, 81.0) and text.endswith(subsets.WITHOUT_BEST)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"teacher_sha256": "other"}, "subset 2, 1-shot trial 0 differs from subset 1, 1-shot trial 0 in its teacher"),
        ({"schedule": [{**PHASE, "epochs": 2}]}, "in its schedule"),
        ({"subset_seed": 3}, "subset-2: holds results of subset 3; rename it to subset-3"),
    ],
)
def test_what_does_not_belong_in_one_table_is_refused(tmp_path, changed, line):
    write(tmp_path, 1, 1, 0, 80.0)
    write(tmp_path, 2, 1, 0, 80.0)
    path = results.path_of(subsets.folder_of(tmp_path, 2), 1, 0)
    files.write_json(path, (saved := results.read(path)) | {"setting": saved["setting"] | changed})
    with pytest.raises(BadInput, match=line):
        subsets.write(tmp_path)


def test_a_table_that_could_not_be_made_is_refused_before_the_cells(tmp_path):
    write(tmp_path, 9, 1, 0, 80.0)
    for flags in ((), ("--fresh",)):
        with pytest.raises(BadInput, match="subset 1, 1-shot trial 0 differs from subset 9, 1-shot trial 0"):
            sweep.run(small_job(tmp_path, *RUN, "--subset_seeds", "1", *flags).of_subsets())
    assert not list(tmp_path.glob("subset-1/results/*/*.json"))


def test_shards_deal_out_the_cells_of_all_subsets(tmp_path):
    dealt = []
    for index in range(1, 5):
        flags = ("--nshot", "1", "--trials", "3", "--subset_seeds", "1", "2", "3", "--shard", f"{index}/4")
        jobs = small_job(tmp_path, *flags).of_subsets()
        dealt.append([(job.subset_seed, cell.trial) for job in jobs for cell in job.cells])
    assert sorted(map(len, dealt)) == [2, 2, 2, 3]
    assert sorted(cell for share in dealt for cell in share) == [
        (seed, trial) for seed in (1, 2, 3) for trial in range(3)
    ]


def test_students_are_beside_the_results_or_in_folders_of_the_student_dir(tmp_path):
    flags = ("--subset_seeds", "3")
    (beside,), (apart,) = (
        small_job(tmp_path, *flags, *more).of_subsets() for more in ((), ("--student_dir", str(tmp_path / "students")))
    )
    assert beside.student_dir == tmp_path / "subset-3/student"
    assert apart.student_dir == tmp_path / "students/subset-3" and apart.output_dir == tmp_path / "subset-3"


def test_one_subset_or_several(capsys):
    with pytest.raises(SystemExit):
        train_fskd.arguments(["--subset_seed", "1", "--subset_seeds", "2"])
    line = capsys.readouterr().err
    assert "argument --subset_seeds: not allowed with argument --subset_seed" in line and line.count("\n") == 1
    assert train_fskd.arguments(["--subset_seeds", "2"]).subset_seeds == [2]
