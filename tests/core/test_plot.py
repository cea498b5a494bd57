import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import refused

pytest.importorskip("matplotlib")

from mmattn import head_statistics
from mmattn.plot import LEAST, caption, head_chart, heat_map, overlay, plain

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["what", "$is$", "this", "?"]


def test_heat_map_is_saved(tmp_path):
    path = tmp_path / "new" / "map.png"
    figure = heat_map(torch.rand(4, 6).requires_grad_(), WORDS, list("abcdef"), path)
    assert Image.open(path).size[0] > 100
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["what", r"\$is\$", "this", "?"]


def test_pyplot_is_not_imported():
    code = "import sys, torch; from mmattn.plot import heat_map; heat_map(torch.rand(2, 2)); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "matplotlib.pyplot" not in done.stdout.split()


def test_heat_map_of_several_heads(tmp_path):
    figure = heat_map(torch.rand(6, 4, 4), WORDS, WORDS, tmp_path / "heads.svg", titles=[f"head {i}" for i in range(6)])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:6] == [f"head {i}" for i in range(6)]
    scales = {axis.images[0].get_clim() for axis in figure.axes[:6]}
    assert len(scales) == 1  # heads can be compared


def test_long_texts_keep_readable_ticks():
    figure = heat_map(torch.rand(200, 200), [str(i) for i in range(200)], [str(i) for i in range(200)])
    assert len(figure.axes[0].get_xticklabels()) <= 60


@pytest.mark.parametrize("kind", ["uint8 array", "float array", "tensor", "gray", "PIL"])
def test_overlay_accepts_any_image(kind, tmp_path):
    image = {
        "uint8 array": np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8),
        "float array": np.random.default_rng(0).random((40, 60, 3)),
        "tensor": torch.rand(3, 40, 60),
        "gray": np.zeros((40, 60), dtype=np.uint8),
        "PIL": Image.new("L", (60, 40)),
    }[kind]
    figure = overlay(image, torch.rand(5, 5), tmp_path / "over.png", "where?", [(0.0, 0.0, 0.5, 0.5)])
    assert (tmp_path / "over.png").stat().st_size > 0
    panels = [axis for axis in figure.axes if axis.images]
    assert [len(axis.images) for axis in panels] == [1, 2]  # the image; the image under its map
    assert panels[0].images[0].get_array().shape == (40, 60, 3)


def test_overlay_position():
    weights = torch.zeros(4, 6)
    weights[3, 0] = 1.0  # bottom left
    laid = overlay(np.zeros((40, 60, 3), dtype=np.uint8), weights).axes[1].images[1].get_array()
    row, column = np.unravel_index(laid.argmax(), laid.shape)
    assert row >= 30
    assert column < 10
    window = (0.25, -0.25, 0.75, 1.25)  # a padded square over a wide crop
    axis = overlay(np.zeros((40, 60, 3)), weights, window=window).axes[1]
    assert axis.images[1].get_extent() == [15, 45, 50, -10]
    assert (axis.get_xlim(), axis.get_ylim()) == ((0, 60), (40, 0))
    box = overlay(np.zeros((40, 60, 3)), weights, boxes=[(0.1, 0.5, 0.2, 1.0)]).axes[0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == pytest.approx((6, 20, 6, 20))


def test_flat_maps_look_flat_and_are_called_so():
    flat, peaked = torch.full((4, 4), 0.44), torch.eye(4)
    figure = overlay(torch.rand(3, 32, 32), [flat * 1.01, flat, peaked], titles=["a", "", "c"])
    panels = [axis for axis in figure.axes if len(axis.images) == 2]
    assert [axis.get_title() for axis in panels] == ["a, nearly uniform", "nearly uniform", "c"]
    for axis, top in zip(panels, (LEAST, LEAST, 4.0), strict=True):
        assert axis.images[1].get_clim() == pytest.approx((0, top))
    bars = [axis for axis in figure.axes if axis.get_ylabel()]
    assert [axis.get_ylabel() for axis in bars] == ["times uniform (line: 1)"] * 3
    figure = heat_map([torch.full((2, 6), 1 / 6), torch.eye(2, 6)], titles=["a", "b"], title="$c$")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["a, nearly uniform", "b"]
    assert heat_map(torch.full((2, 6), 1 / 6)).axes[0].images[0].get_clim() == pytest.approx((0, LEAST / 6))
    assert figure.axes[2].get_ylabel() == "attention weight (line: uniform, 0.17)"
    assert figure.get_suptitle() == r"\$c\$"


def test_numbers_of_a_confusion_matrix():
    counts = torch.tensor([[3, 1], [0, 12]])
    axis = heat_map(counts / counts.sum(1, keepdim=True), numbers=counts).axes[0]
    assert [text.get_text() for text in axis.texts] == ["3", "1", "12"]
    assert axis.images[0].get_clim() == (0, 1)


def test_captions():
    assert caption("a.jpg", "dog").splitlines() == ["a.jpg", "predicted: dog"]
    assert caption("", "dog") == "predicted: dog"
    long = caption("deep/" * 40 + "a.jpg", "word " * 200, "dog", 3.0).splitlines()
    assert max(map(len, long)) <= 36
    assert long[-1] == "true: dog"
    assert len(long) == 7, "three lines at most of each"
    assert plain("\udcff$") == r"?\$"


def test_several_maps_on_one_image():
    figure = overlay(torch.rand(3, 32, 32), [torch.rand(4, 4), torch.rand(8, 8)], titles=["a", "b"])
    assert [axis.get_title() for axis in figure.axes if axis.images] == ["", "a", "b"]


def test_heads_by_layers(tmp_path):
    found = head_statistics([torch.rand(2, 4, 5, 5) for _ in range(3)])
    figure = head_chart(found, tmp_path / "heads.png", layer_names=["a", "b", "$c"], title="heads")
    assert Image.open(tmp_path / "heads.png").size[0] > 100
    panels = [axis for axis in figure.axes if axis.get_xlabel() == "head"]
    assert [axis.get_title() for axis in panels] == ["entropy", "relative entropy", "distance", "disagreement"]
    for axis, values in zip(panels, found, strict=True):
        assert axis.images[0].get_array().shape == (3, 4)
        np.testing.assert_allclose(axis.images[0].get_array(), values)
        assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", r"\$c"]
    odd = head_chart({"entropy": torch.tensor([[0.5, float("nan")]])})  # as for a distance across sequences
    assert odd.axes[0].images[0].get_array().mask.tolist() == [[False, True]]


def test_invalid_arguments():
    refused("expected values of one shape", head_chart, {"a": torch.rand(2, 3), "b": torch.rand(3, 3)})
    refused("1 layer_names for 2 layers", head_chart, {"a": torch.rand(2, 3)}, layer_names=["x"])
    refused("expected maps of two dimensions", head_chart, {"a": torch.rand(3)})
    refused("row_labels has 1 labels for 3 rows", heat_map, torch.rand(3, 4), ["a"])
    refused("col_labels has 1 labels for 4 cols", heat_map, torch.rand(3, 4), None, ["a"])
    refused("expected maps of two dimensions", heat_map, torch.rand(3))
    refused("1 titles for 2 maps", heat_map, torch.rand(2, 3, 4), titles=["a"])
    refused("expected", overlay, torch.rand(5, 3, 3), torch.rand(2, 2)[None, None])
    wrong = r"expected an image \(H, W, 3\), found shape \(4, 4, 7\)"
    refused(wrong, overlay, np.zeros((4, 4, 7)), torch.rand(2, 2))
