"""Results of four cells, one of them failed, as a result file holds them."""

from dataclasses import replace

from grafting.recipes import FOLDER

PHASE = {"phase": "B0", "span": [3, 6], "epochs": 100, "lr_student": 2.5e-5, "lr_adapter": 2.5e-4, "batch": 6}
RECIPE = replace(FOLDER, published={1: (90.74, 0.49)}, published_teacher=92.83)


def cell(shots, trial, best=None, last=None, **setting):
    status = {"status": "failed"} if best is None else {"status": "done", "best": best, "last": last}
    fields = dict.fromkeys(("dataset", "seed", "precision", "teacher_sha256", "test_sha256", "normalization"), "same")
    fields |= {"subset_sha256": f"of {shots}", "schedule": [PHASE], "method": "grafting"} | setting
    return {**status, "setting": {"shots": shots, "trial": trial, **fields}, "teacher": {"accuracy": 92.3}}


CELLS = [cell(1, 0, 80.0, 79.0), cell(1, 1, 82.0, 80.0), cell(1, 2), cell(10, 0, 91.5, 91.25)]
