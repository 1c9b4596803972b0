import pytest

from utilgen_jax.bench.peaks import device_peak, measured_peak
from utilgen_jax.bench.timing import Work


@pytest.mark.parametrize(
    ("device_kind", "dtype", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA H200", "float32", 494.7),
        ("NVIDIA A100-SXM4-80GB", "float16", 312.0),
        ("NVIDIA L40S", "bfloat16", 362.0),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("Tesla T4", "float16", 65.0),
        ("TPU v4", "bfloat16", 275.0),
        ("TPU v5 lite", "bfloat16", 197.0),
        ("TPU v5", "float32", 459.0),
        ("TPU v6 lite", "bfloat16", 918.0),
    ],
)
def test_a_device_is_found_by_the_name_that_jax_gives_it(device_kind, dtype, teraflops):
    peak = device_peak(device_kind, dtype)
    assert peak.flops_per_second == pytest.approx(teraflops * 1e12) and peak.source == "data sheet"
    assert peak.share(teraflops * 1e12 / 4) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("device_kind", "dtype"),
    [("Tesla T4", "bfloat16"), ("TPU v5p", "float16"), ("TPU v4 lite", "bfloat16"), ("x", "float32")],
)
def test_what_has_no_peak_gets_no_share(device_kind, dtype):
    peak = device_peak(device_kind, dtype)
    assert peak.source == "unknown" and peak.share(1e12) is None


def test_the_best_matrix_product_is_a_processors_peak(monkeypatch):
    seconds = {"slow": iter([9.0, 4.0, 5.0]), "fast": iter([9.0, 3.0, 2.0])}
    works = {name: Work(lambda: None, lambda result: None) for name in seconds}
    monkeypatch.setattr(
        Work, "run", lambda self, number=1: next(seconds[next(name for name in works if works[name] is self)])
    )
    peak = measured_peak([lambda size, work=work: work for work in works.values()], repeats=2)
    assert peak.flops_per_second == 2 * 1024**3 / 2.0 and peak.source == "measured"
