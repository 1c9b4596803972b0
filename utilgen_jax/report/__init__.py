"""Output of a run: metrics on disk, progress and ETA, tables with intervals, figures and the HTML report."""

from utilgen_jax.report.metrics import MetricsWriter, read_metrics
from utilgen_jax.report.page import write_report
from utilgen_jax.report.plots import (
    plot_auc,
    plot_curves,
    plot_data_efficiency,
    plot_difficulty,
    plot_intervals,
    plot_weight_curve,
)
from utilgen_jax.report.progress import Progress, format_duration
from utilgen_jax.report.table import format_markdown_table, format_table, mean_std, paired_difference

__all__ = [
    "MetricsWriter",
    "Progress",
    "format_duration",
    "format_markdown_table",
    "format_table",
    "mean_std",
    "paired_difference",
    "plot_curves",
    "plot_data_efficiency",
    "plot_difficulty",
    "plot_intervals",
    "plot_auc",
    "plot_weight_curve",
    "read_metrics",
    "write_report",
]
