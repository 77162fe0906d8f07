"""The table of benchmarks: fitted exponents, ratios, and which rows are replaced."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from benchmarks.record import Bench, digits, power_law

OLD = """benchmark,case,unit,value,ratio,hardware
before,"a loop, 1 chain",images/s,11789,1.0,"a CPU, 2 cores"
timed,slow,images/s,1,1.0,"a CPU, 2 cores"
after,"a loop, 1 chain",images/s,805,1.00,"a CPU, 2 cores"
"""


def test_an_exact_power_law_is_found():
    x = np.array([1e3, 3e3, 1e4, 1e5])
    exponent, se = power_law(x, 3 * x**1.7)
    assert exponent == pytest.approx(1.7, rel=1e-12) and se < 1e-12
    assert power_law(x, np.full(4, 3.8)) == (0, 0)


def test_the_standard_error_is_that_of_the_exponent():
    rng, x, fits = np.random.default_rng(0), np.geomspace(1e3, 1e5, 7), 4000
    noise = np.exp(0.1 * rng.standard_normal((fits, len(x))))
    exponents, errors = np.transpose([power_law(x, 2 * x**0.9 * row) for row in noise])
    covered = np.abs(exponents - 0.9) < t.ppf(0.9, len(x) - 2) * errors  # of an 80% interval
    assert abs(covered.mean() - 0.8) < 5 * np.sqrt(0.8 * 0.2 / fits)


def test_significant_digits():
    assert [digits(x, 4) for x in (11789.4, 0.0360912, 1.0, 97.0)] == ["11789", "0.03609", "1", "97"]


def test_rows_take_the_place_of_the_same_benchmark(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(OLD)
    Bench(file).record("timed", "images/s", {"slow": 2.0, "fast": 5.0})
    _, before, after, slow, fast = file.read_text().splitlines()
    assert before.startswith('before,"a loop, 1 chain",images/s,11789,1.0,') and '"a CPU, 2 cores"' in before
    assert after.startswith('after,"a loop, 1 chain",images/s,805,1.00,')
    assert slow.startswith("timed,slow,images/s,2,1,") and fast.startswith("timed,fast,images/s,5,2.5,")


def test_a_curve_is_compared_with_the_baseline_at_the_same_size(tmp_path):
    file = tmp_path / "rows.csv"
    loop, program = {10: 1.0, 100: 100.0, 1000: 10_000.0}, {10: 2.0, 100: 20.0, 1000: 200.0}
    Bench(file).record_curves("cost", "ms", "p", {"loop": loop, "program": program})
    table = pd.read_csv(file)
    assert table["ratio"].tolist() == [1, 1, 1, 2, 0.2, 0.02]
    assert table["at"].tolist() == [10, 100, 1000] * 2 and set(table["against"]) == {"p"}
    assert table["exponent"].tolist() == [2] * 3 + [1] * 3 and table["exponent_se"].tolist() == [0] * 6


def test_a_quick_run_times_once_and_small(tmp_path):
    calls = []
    for quick, size, rounds in ((False, 100, 7), (True, 3, 1)):
        bench = Bench(tmp_path / "rows.csv", quick)
        calls.clear()
        bench.seconds({"a": lambda: calls.append(1)}, rounds=7)
        assert len(calls) == rounds + 1 and bench.size(100, 3) == size
