import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from committed import ROOT, as_committed
from few_results import CELLS, RECIPE, cell
from matplotlib.figure import Figure
from PIL import Image

from experiments import figure, tables
from experiments.figure import Panel
from utils import files

pytestmark = pytest.mark.usefixtures("real_pictures")
PANEL = Panel("A (1 trial)", tables.rows(CELLS, RECIPE), {1: (90.74, 0.49), 9: (92.88, 0.05)}, 92.83)


@pytest.fixture
def axes():
    """A function that draws one panel and returns its axes and what is in the legend."""

    def draw(panel):
        return (axes := Figure().subplots()), figure._draw_panel(axes, panel)

    return draw


def test_students_are_drawn_minus_their_own_teachers(axes):
    drawn_on, drawn = axes(PANEL)
    assert {name: where(line) for name, line in drawn.items() if "teacher" not in name} == {
        "ours, best": pytest.approx([1, 81.0 - 92.3, 10, 91.5 - 92.3]),
        "ours, last": pytest.approx([1, 79.5 - 92.3, 10, 91.25 - 92.3]),
        "paper, best": pytest.approx([1, 90.74 - 92.83, 9, 92.88 - 92.83]),
    }
    (bars,) = drawn["ours, best"][2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends[0] == pytest.approx([81 - 92.3 - 2**0.5, 81 - 92.3 + 2**0.5])
    assert drawn["each student's own teacher"].get_ydata()[0] == 0 and len(drawn) == 4
    assert drawn_on.get_xscale() == "log"
    assert drawn_on.get_xticks().tolist() == [1, 9, 10]
    assert [text.get_text() for text in drawn_on.get_xticklabels()] == ["1", "9", "10"]


def where(line):
    return line[0].get_xydata().flatten().tolist()


def test_where_the_papers_teacher_is_not_reported_accuracies_are_drawn_and_the_title_says_so(axes):
    drawn_on, drawn = axes(replace(PANEL, published_teacher=None))
    assert where(drawn["ours, best"]) == [1, 81.0, 10, 91.5] and where(drawn["paper, best"]) == [1, 90.74, 9, 92.88]
    assert drawn["our teacher"].get_ydata()[0] == 92.3 and len(drawn) == 4
    assert "accuracies: the paper's teacher is not reported" in drawn_on.get_title(loc="left")


def test_what_there_is_not_is_not_drawn(axes):
    _, drawn = axes(Panel("B", tables.rows([cell(1, 0)], RECIPE), {}, None))  # failed
    assert set(drawn) == {"each student's own teacher"}


def test_panels_are_side_by_side_and_keep_their_numbers_in_the_svg():
    svg = figure.draw([PANEL, PANEL], "svg")
    assert svg == figure.draw([PANEL, PANEL], "svg") and b"matplotlib v" not in svg.lower()
    root = ElementTree.fromstring(svg)
    assert float(root.get("width")[:-2]) == 72 * 2 * figure.PANEL_WIDTH
    assert described(svg) == figure.numbers([PANEL, PANEL]) and "| 10 |" in described(svg)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["Folder-猫狗 (1 trial)", "Folder-$a (1 trial)"])
def test_any_folder_may_be_the_title(name):
    """Without a warning of letters that the font does not have."""
    assert figure.draw([replace(PANEL, title=name)], "png")


def test_the_users_settings_change_no_picture(monkeypatch):
    before = figure.draw([PANEL], "png")
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9)
    assert figure.draw([PANEL], "png") == before


def test_a_figure_that_cannot_be_drawn_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no such backend\nat all")

    monkeypatch.setattr(figure, "read_panels", lambda _: [PANEL])
    monkeypatch.setattr(figure, "draw", fail)
    assert figure.main(["results", "--to", str(tmp_path / "a.svg")]) == 2
    told = f"experiments.figure: {tmp_path}/a.svg cannot be written (no such backend); no result depends on it\n"
    assert capsys.readouterr().err == told and not list(tmp_path.iterdir())


def described(svg):
    return ElementTree.fromstring(svg).find(".//{http://purl.org/dc/elements/1.1/}description").text


@pytest.fixture
def folders(tmp_path):
    """The committed results of both CIFARs' teachers that ship."""
    names = ("CIFAR10-second-teacher", "CIFAR100-quick")
    return [as_committed(ROOT / "benchmarks/results" / name, tmp_path) for name in names]


def test_the_committed_figure_is_that_of_the_committed_results(folders, tmp_path):
    committed = (as_committed(ROOT / "benchmarks/figures", tmp_path) / "accuracy.svg").read_bytes()
    assert described(committed) == figure.numbers(figure.read_panels(folders))


def write(folder, dataset="CIFAR10", **setting):
    results = [cell(1, 0, 80.0, 79.0, dataset=dataset, **setting), cell(1, 1, 82.0, 80.0, dataset=dataset, **setting)]
    for trial, result in enumerate(results):
        files.write_json(folder / f"results/1-shot/trial-{trial}.json", result)
    return folder


def test_the_command(tmp_path, capsys):
    one, two = write(tmp_path / "one"), write(tmp_path / "two", method="kd")
    for name in ("a.png", "a.svg"):
        assert figure.main([str(one), str(two), "--to", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    text = described((tmp_path / "a.svg").read_bytes())
    assert text.startswith("CIFAR10 (2 trials)\n") and "\n\nCIFAR10, kd (2 trials)\n" in text
    for arguments, line in (
        ([str(one), "--to", "a.jpeg"], "--to a.jpeg: the figure is a .png or a .svg file; give it such a name"),
        ([str(tmp_path), "--to", str(tmp_path / "b.png")], f"{tmp_path}/results: no results found"),
    ):
        assert figure.main(arguments) == 2
        assert line in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tmp_path / "b.png").exists()


def test_the_papers_numbers_belong_to_the_papers_method(tmp_path):
    ours, others = figure.read_panels([write(tmp_path / "one"), write(tmp_path / "two", method="kd")])
    assert ours.published[1] == (90.74, 0.49) and ours.published_teacher == 92.83 and ours.shots[-1] == 50
    assert not others.published and others.published_teacher is None and others.shots == [1]


def test_what_is_drawn_is_inside_the_picture(folders):
    """Nothing but white at the edges: no label is cut off."""
    drawing = io.BytesIO(figure.draw(figure.read_panels(folders), "png"))
    pixels = np.asarray(Image.open(drawing).convert("RGB"))
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()
