"""Curves as matplotlib has them: where points, ticks and panels are."""

import matplotlib.figure
import pytest

from rwguidance.evaluation.curves import COLORS, Line, Measured, Panel, Point, draw


def line(label, *places, few=()):
    points = [Point(Measured(x, 0.0), Measured(1.0 + x, 0.5), x in few) for x in places]
    return Line(label, points)


@pytest.fixture
def figure_of(monkeypatch, tmp_path):
    """Returns the figure of panels, of which no file is written."""

    def figure_of(*panels):
        figures = []
        save = lambda figure, path, **_: figures.append(figure) or path.touch()
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
        draw(panels, [tmp_path / "curves.png"], "a title for $5")
        (figure,) = figures
        return figure

    return figure_of


def places_of(axis, color):
    """Places of the points of a color."""

    ours = [one for one in axis.lines if one.get_color() == color and len(one.get_xdata()) == 1]
    points = [one for one in ours if one.get_marker() in "osD^vP"]  # and no ends of errors
    return [float(one.get_xdata()[0]) for one in points]


def test_three_panels_stand_in_a_row_and_the_rest_is_empty(figure_of):
    panel = Panel("x", "y", "", {0: line("one", 1.0, 2.0)})
    figure = figure_of(*[panel] * 4)
    assert figure.get_size_inches().tolist() == pytest.approx([3 * 4.2, 2 * 3.4 + 1])
    assert [axis.axison for axis in figure.axes] == [True] * 4 + [False] * 2
    assert figure.get_suptitle() == r"a title for \$5"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one"]
    single = figure_of(panel)
    assert single.get_size_inches().tolist() == pytest.approx([4.2, 3.4 + 1])


def test_lines_of_one_place_stand_a_little_apart(figure_of):
    lines = {0: line("one", 1.0, 2.0), 2: line("two", 1.0, 2.0), 3: line("three", 1.0)}
    by_strength = Panel("x", "y", "", lines, ticks=(1.0, 2.0))
    by_gain = Panel("x", "y", "", lines, logarithmic=False)
    left, right = figure_of(by_strength, by_gain).axes
    assert places_of(left, COLORS[0]) == pytest.approx([1 / 1.03, 2 / 1.03])
    assert places_of(left, COLORS[2]) == pytest.approx([1.0, 2.0])
    assert places_of(left, COLORS[3]) == pytest.approx([1.03])
    for i, one in lines.items():
        assert places_of(right, COLORS[i]) == [point.x.value for point in one.points]
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    # At costs, those that begin at the same one.
    by_cost = Panel("x", "y", "", lines | {2: line("two", 1.5)})
    (axis,) = figure_of(by_cost).axes
    assert places_of(axis, COLORS[0]) == pytest.approx([1.03**-0.5, 2 * 1.03**-0.5])
    assert places_of(axis, COLORS[2]) == [1.5]


def test_ticks_are_at_strengths_whose_labels_do_not_meet(figure_of):
    strengths = (0.25, 1.0, 1.01, 4.0)
    panel = Panel("x", "y", "", {0: line("one", *strengths, few=(4.0,))}, ticks=strengths)
    (axis,) = figure_of(panel).axes
    assert axis.get_xlim() == pytest.approx((0.25 / 1.3, 4 * 1.3))
    assert axis.get_xticks().tolist() == [0.25, 1.0, 4.0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0.25", "1", "4†"]


def test_ticks_of_costs_are_round_numbers_around_them(figure_of):
    (axis,) = figure_of(Panel("x", "y", "", {0: line("one", 4.0, 30.0)})).axes
    assert axis.get_xlim() == pytest.approx((2.0, 50.0))
    assert axis.get_xticks().tolist() == [2, 5, 10, 20, 50]


def test_points_of_poor_targets_are_open(figure_of):
    (axis,) = figure_of(Panel("x", "y", "", {0: line("one", 1.0, 2.0, few=(2.0,))})).axes
    points = [one for one in axis.lines if len(one.get_xdata()) == 1 and one.get_marker() == "o"]
    assert [one.get_markerfacecolor() for one in points] == [COLORS[0], "none"]
