"""A cell's setting, as in result files: everything that decides its numbers. Only equal settings are averaged."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grafting.recipes import Phase
from grafting.stages import GRAFTING
from models.architectures import STUDENT_WIDTH
from models.networks import NETWORKS
from utils import files
from utils.errors import BadInput

Setting = dict[str, Any]
CELL_FIELDS = ("shots", "trial")  # these say which cell it is
SHOTS_FIELDS = ("subset_sha256", "schedule")  # these depend on N
SAME_FOR_ALL_SHOTS = ("phase", "span", "epochs", "selects_among", "least_views")  # of the schedule
# these say how a student is made, and which
STUDENT_FIELDS = ("method", "schedule", "start", "student_width", "choice_of_filters", "augmentation", "batchnorm")


def phase_content(phase: Phase, shots: int) -> dict[str, Any]:
    """A phase at N shots as plain values. What only some phases have is left out for the others."""
    lr_student, lr_adapter = phase.learning_rates(shots)
    content = {
        "phase": phase.name,
        "span": list(phase.span),
        "epochs": phase.epochs,
        "lr_student": lr_student,
        "lr_adapter": lr_adapter,
        "batch": phase.batch(shots),
    }
    if 0 < phase.selects_among < phase.epochs:
        content["selects_among"] = phase.selects_among
    if phase.least_views:
        content["least_views"] = phase.least_views
    if phase.loss is not None:
        content["loss"] = {"name": type(phase.loss).__name__, **asdict(phase.loss)}
    return content


def complete(setting: Any) -> Any:
    """A setting from a file: fill in what older files lack."""
    if not isinstance(setting, dict):
        return setting
    of_vggs = {} if "networks" in setting else {"student_width": STUDENT_WIDTH}
    return {"method": GRAFTING.name, "start": "fresh", **of_vggs, **setting}


def require_same(ours: Setting, other: Setting, path: Path) -> None:
    """Raise BadInput that names what differs between a cell's setting and the one in the file at `path`."""
    other = complete(other)
    for name in ours:
        if other.get(name) != ours[name]:
            what, saved_now = name.replace("_", " "), files.difference(other.get(name), ours[name])
            fresh = "" if name in ("dataset", "method") else "--fresh runs the cell again, "
            advice = f"{fresh}another --output_dir keeps both"
            raise BadInput(f"{path}: made with another {what} ({saved_now}); {advice}")


def method_name(setting: Setting) -> str:
    """How a student is made: "kd", or "grafting, start teacher"."""
    start = setting.get("start", "fresh")
    return setting["method"] if start == "fresh" else f"{setting['method']}, start {start}"


def student_name(setting: Setting) -> str:
    """What tables call a student, by its method and what is not as usual: "kd, start teacher, blocks 3-3"."""
    name, span = method_name(setting), setting["schedule"][-1]["span"]
    if (width := setting.get("student_width", STUDENT_WIDTH)) != STUDENT_WIDTH:
        name += f", width {width:g}"
    usual = NETWORKS.get(setting.get("networks", "vgg16"))  # VGGs, all cut alike, are not named; None: a user's own
    if usual is None or range(*span) != usual.grafted:
        name += f", blocks {span[0]}-{span[1] - 1}"
    return name


def require_comparable(settings: Mapping[str, Setting], advice: str = "keep them in different --output_dir") -> None:
    """Raise BadInput if these cells do not belong in one table. settings: by the name of the cell. advice: what to do.

    Cells of one N may differ in the trial only. Cells of different N may also differ in what depends on N: the subset,
    the batch size, learning rates, and the temperature of a loss.
    """
    first_of_shots: dict[int, tuple[str, Setting]] = {}
    first: tuple[str, Setting] | None = None
    for name, saved in settings.items():
        setting = complete(saved)
        first = first or (name, setting)
        same_shots = first_of_shots.setdefault(setting["shots"], (name, setting))
        for (other_name, other), compared in ((same_shots, dict), (first, _across_shots)):
            field = _first_difference(compared(setting), compared(other))
            if field:
                raise BadInput(f"{name} differs from {other_name} in its {field.replace('_', ' ')}; {advice}")


def _first_difference(one: Setting, two: Setting) -> str | None:
    """The name of a field that differs, besides those that say which cell it is."""
    fields_of_both = (name for name in {**one, **two} if name not in CELL_FIELDS)
    return next((name for name in fields_of_both if one.get(name) != two.get(name)), None)


def _across_shots(setting: Setting) -> Setting:
    """What must agree between cells of different N."""
    same = {name: value for name, value in setting.items() if name not in SHOTS_FIELDS}
    return {**same, "schedule": [[step.get(name) for name in SAME_FOR_ALL_SHOTS] for step in setting["schedule"]]}
