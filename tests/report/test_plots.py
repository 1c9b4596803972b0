import numpy as np
import pytest
from PIL import Image

from utilgen_jax.report import plots

METRICS = [
    {"step": step, "stage": stage, "time": 0.0, "loss": 1 / step, "test_accuracy": 1 - 1 / step}
    for stage in ("real", "final")
    for step in (10, 20, 30)
]
RNG = np.random.default_rng(0)
MAP = {
    "synthetic": (RNG.normal(size=(90, 2)), np.arange(90) % 2),
    "real": (RNG.normal(size=(3, 2)), np.array([0, 1, 1])),
}
DRAW = {
    "curves": lambda path: plots.plot_curves(METRICS, path),
    "weight_curve": lambda path: plots.plot_weight_curve(RNG.gamma(1, 1, 300), RNG.uniform(size=300), path),
    "one_sample": lambda path: plots.plot_weight_curve([1.0], [0.5], path),
    "intervals": lambda path: plots.plot_intervals(
        {"1 shot": {"a": (1.0, 0.5, 1.5), "b": (-2.0, None, None)}, "2 shots": {"b": (0.5, 0.0, 1.0)}},
        {"a": "ours", "b": "theirs"},
        "Points",
        path,
        reference=0.0,
    ),
    "data_efficiency": lambda path: plots.plot_data_efficiency(
        {
            "1 shot": {"a": {1: (50.0, 1.0), 50: (60.0, 2.0)}, "b": {5: (55.0, None)}},
            "2 shots": {"b": {5: (55.0, 1.0)}},
        },
        {"1 shot": {"real": 40.0}},
        ("Images", "Accuracy"),
        path,
    ),
    "auc": lambda path: plots.plot_auc(
        {"a": RNG.uniform(size=50), "b": np.ones(50)},
        {"a": RNG.uniform(size=50) < 0.3, "b": np.ones(50, bool)},
        "w",
        path,
    ),
    "difficulty": lambda path: plots.plot_difficulty({"a": RNG.uniform(size=20), "b": RNG.uniform(size=300)}, path),
    "requested_difficulty": lambda path: plots.plot_requested_difficulty(
        RNG.uniform(size=9), RNG.uniform(size=9), path
    ),
    "image_map": lambda path: plots.plot_image_map(MAP, ("zero", "one"), (0.5, 0.25), path),
}


@pytest.mark.parametrize("name", DRAW)
def test_png_has_ink_on_white(tmp_path, name):
    path = DRAW[name](tmp_path / "figures" / f"{name}.png")
    assert path == tmp_path / "figures" / f"{name}.png"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert image.format == "PNG" and min(pixels.shape[:2]) > 150
    assert (pixels[0, 0] == 255).all() and 0.01 < (pixels != 255).any(-1).mean() < 0.9


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures that are drawn, for inspection."""
    figures, make = [], plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: figures.append(make(*size)) or figures[-1])
    return figures


def test_curves_hold_the_metrics(tmp_path, drawn):
    plots.plot_curves(METRICS, tmp_path / "curves.svg")
    loss, accuracy = drawn[0].axes
    assert loss.get_ylabel() == "Loss" and accuracy.get_ylabel() == "Accuracy (%)" and loss.get_xlabel() == "Step"
    np.testing.assert_allclose(loss.lines[1].get_xydata(), [[10, 1 / 10], [20, 1 / 20], [30, 1 / 30]])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [90, 95, 100 * 29 / 30])
    assert loss.lines[0].get_color() == accuracy.lines[0].get_color() != loss.lines[1].get_color()
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["real", "final", "real: test", "final: test"]


def test_auc_plot_shows_shares_of_right_and_of_wrong_labels(tmp_path, drawn):
    plots.plot_auc({"a": [0.05, 0.05, 0.95, 3.0]}, {"a": [True, True, False, False]}, "w", tmp_path / "a.svg")
    right, wrong = (patch.get_data() for patch in drawn[0].axes[0].patches)
    assert right.edges[-1] == 3 and right.values.sum() == wrong.values.sum() == 100
    assert wrong.values[0] == 100 and right.values[0] == 0 and right.values[-1] == 50


def test_weight_curve_goes_through_the_means_of_the_bins(tmp_path, drawn):
    losses = RNG.permutation(np.linspace(0, 4, 200))
    plots.plot_weight_curve(losses, 1 - losses / 4, tmp_path / "curve.svg")
    x, y = drawn[0].axes[0].lines[0].get_data()
    assert len(x) == 20 and (np.diff(x) > 0).all()
    np.testing.assert_allclose(y, 1 - np.asarray(x) / 4, atol=1e-12)
    assert sum(bar.get_height() for bar in drawn[0].axes[1].patches) == 200


def test_methods_have_the_same_height_in_all_panels(tmp_path, drawn):
    panels = {"1 shot": {"a": (1.0, 0.5, 1.5), "b": (-2.0, None, None)}, "2 shots": {"b": (0.5, 0.0, 1.0)}}
    plots.plot_intervals(panels, {"a": "ours", "b": "theirs"}, "Points", tmp_path / "intervals.svg")
    first, second = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["1 shot", "2 shots"]
    heights = {label.get_text(): label.get_position()[1] for label in first.get_yticklabels()}
    assert heights["a"] > heights["b"]
    shown = [[line.get_xydata().tolist() for line in axes.lines] for axes in (first, second)]
    a, b = heights["a"], heights["b"]
    assert shown == [[[[0.5, a], [1.5, a]], [[1.0, a]], [[-2.0, b]]], [[[0.0, b], [1.0, b]], [[0.5, b]]]]
    colours = [[line.get_color() for line in axes.lines] for axes in (first, second)]
    assert colours[0][0] == colours[0][1] != colours[0][2] == colours[1][0]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["ours", "theirs"]


def test_difficulty_shares_add_up_to_a_hundred_for_each(tmp_path, drawn):
    groups = {"real": [0.02, 0.02, 0.52, 1.0], "pool": np.full(50, 0.52)}
    plots.plot_difficulty(groups, tmp_path / "difficulty.svg")
    _, real, _, pool = (patch.get_data().values for patch in drawn[0].axes[0].patches)  # each filled, then its line
    assert pool[10] == pool.sum() == 100
    assert real[[0, 10, 19]].tolist() == [50, 25, 25] and real.sum() == 100


@pytest.mark.parametrize(
    ("names", "titles"), [((), ["synthetic (90)", "real (3)"]), (("zero", "one"), ["zero", "one"])]
)
def test_the_map_has_a_colour_for_each_group_or_class(tmp_path, drawn, names, titles):
    plots.plot_image_map(MAP, names, (0.5, 0.25), tmp_path / "map.svg")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == titles
    assert sum(len(points.get_offsets()) for points in axes.collections) == 93
    assert axes.get_xlabel() == "First component (50% of the variance)"


def test_the_same_figure_gives_the_same_svg(tmp_path):
    first, second = (plots.plot_curves(METRICS, tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second and b"<svg" in first


def test_empty_metrics_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.plot_curves([{"step": 1, "stage": "final", "time": 0.0, "seconds": 3.0}], tmp_path / "x.png")
    with pytest.raises(ValueError, match="same length"):
        plots.plot_weight_curve([1.0, 2.0], [1.0], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_data_efficiency_has_a_line_for_each_method_on_a_logarithmic_axis(tmp_path, drawn):
    panels = {f"panel {number}": {"a": {10: (3.0, 0.5), 1: (2.0, 0.25)}, "b": {1: (4.0, None)}} for number in range(5)}
    references = {"panel 0": {"real": 1.5}, "panel 4": {"real": 2.5, "cutmix": 0.5}}
    plots.plot_data_efficiency(panels, references, ("Images", "Accuracy"), tmp_path / "curve.svg")
    (figure,) = drawn
    assert len(figure.axes) == 5 and [axes.get_title(loc="left") for axes in figure.axes] == list(panels)
    for axes in figure.axes:
        assert axes.get_xscale() == "log" and [label.get_text() for label in axes.get_xticklabels()] == ["1", "10"]
        line, other = (container.lines[0] for container in axes.containers)
        np.testing.assert_allclose(line.get_xydata(), [[1, 2], [10, 3]])
        np.testing.assert_allclose(other.get_xydata(), [[1, 4]])
    (bars,) = figure.axes[0].containers[0].lines[2]
    np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], [[1.75, 2.25], [2.5, 3.5]])
    heights = [set(line.get_ydata()) for line in figure.axes[4].lines if len(set(line.get_xdata())) == 2]
    assert {2.5} in heights and {0.5} in heights
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["real", "cutmix", "a", "b"]
