import cv2
import numpy as np
import pytest
import torch
from matplotlib.contour import ContourSet

from ahm_gym.segmentation.overlays import Overlay, draw_overlays


def square(value=1, size=(40, 60)):
    label = torch.zeros(size, dtype=torch.int64)
    label[10:20, 30:50] = value
    return label


def outlines(axis):
    """The drawn outlines: corners (x0, y0, x1, y1) each."""
    sets = [child for child in axis.get_children() if isinstance(child, ContourSet)]
    boxes = [path.get_extents().extents for contours in sets for path in contours.get_paths()]
    return [tuple(box) for box in boxes if np.isfinite(box).all()]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_outlines_lie_around_their_classes_whatever_the_size_of_the_image(channels):
    image = torch.rand(channels, 20, 30, generator=torch.Generator().manual_seed(0))
    figure = draw_overlays(
        [Overlay("case", image, square(), torch.zeros(40, 60, dtype=torch.int64))], 2, "title"
    )
    plain, label, prediction = figure.axes
    assert outlines(plain) == [] and outlines(prediction) == []
    assert outlines(label) == [(29.5, 9.5, 49.5, 19.5)]
    assert label.get_xlim() == plain.get_xlim() and label.get_ylim() == plain.get_ylim()


def test_a_label_that_fills_the_image_has_an_outline_too():
    full = torch.ones(8, 8, dtype=torch.int64)
    figure = draw_overlays([Overlay("case", torch.zeros(1, 8, 8), full, full)], 2, "title")
    assert len(outlines(figure.axes[1])) == 1


@pytest.mark.parametrize(("outer", "inner"), [(1, 2), (2, 1)])
def test_an_outer_class_does_not_hide_an_inner_one(outer, inner):
    label = square(outer)
    label[13:17, 35:45] = inner
    figure = draw_overlays([Overlay("case", torch.zeros(1, 40, 60), label, label)], 3, "title")
    assert outlines(figure.axes[1]) == [(29.5, 9.5, 49.5, 19.5), (34.5, 12.5, 44.5, 16.5)]


def test_a_hole_of_background_keeps_its_outline():
    label = square()
    label[13:17, 35:45] = 0
    figure = draw_overlays([Overlay("case", torch.zeros(1, 40, 60), label, label)], 2, "title")
    (contours,) = (child for child in figure.axes[1].get_children() if isinstance(child, ContourSet))
    (path,) = contours.get_paths()
    assert len(path.to_polygons(closed_only=False)) == 2


def test_the_legend_has_the_names_of_the_classes():
    overlay = Overlay("case", torch.zeros(1, 40, 60), square(), square())
    figure = draw_overlays([overlay], 3, "title", {1: "left $x", 2: "right"})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r"left \$x", "right"]


@pytest.mark.parametrize("num_classes", [4, 30])
def test_classes_have_colours_of_their_own(num_classes):
    label = square(1) + square(2).roll(20, 0)
    figure = draw_overlays([Overlay("case", torch.zeros(1, 40, 60), label, label)], num_classes, "title")
    sets = [child for child in figure.axes[1].get_children() if isinstance(child, ContourSet)]
    colours = [tuple(np.ravel(child.get_edgecolor())) for child in sets]
    assert len(colours) == len(set(colours)) == 2


def test_every_case_has_a_column(tmp_path, real_pictures):
    overlays = [Overlay(f"case {i}", torch.zeros(1, 40, 60), square(), square()) for i in range(3)]
    figure = draw_overlays(overlays, 2, "title")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["case 0", "case 1", "case 2"]
    figure.savefig(tmp_path / "overlays.png")
    assert cv2.imread(str(tmp_path / "overlays.png")).std() > 0
