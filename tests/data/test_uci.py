"""The UCI readers on synthetic files of the published shapes, sound and damaged, and the split."""

import os
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from data.files import DataError
from data.uci import NAMES, SOURCES, load, split

SYNTHETIC = ("boston", "yacht", "wine", "energy-efficiency")
SHAPES = {
    "boston": (506, 13),
    "yacht": (308, 6),
    "energy-efficiency": (768, 8),
    "wine": (1599, 11),
    "concrete": (1030, 8),
    "power-plant": (9568, 4),
    "diabetes": (442, 10),
}


def table_of(name: str) -> np.ndarray:
    """Numbers of the file's shape, all different."""
    source = SOURCES[name]
    shape = (source.rows, source.features + 1 + len(source.drop))
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 64 - 50


def write(folder, name: str, cells) -> str:
    """The data folder with the file of `name` in it, in that file's published format."""
    path = folder / SOURCES[name].file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(cells)
    if path.suffix == ".xlsx":
        frame.columns = [f"X{i}" for i in frame.columns]
        frame.to_excel(path, index=False)
        return str(folder)
    separator = ";" if name == "wine" else "  "
    lines = [separator.join("" if cell is None else str(cell) for cell in row) for row in frame.to_numpy(object)]
    if name == "wine":
        lines.insert(0, separator.join(f'"column {i}"' for i in frame.columns))
    path.write_text("\n".join(lines) + "\n")
    return str(folder)


def refused(folder, name: str) -> str:
    with pytest.raises(DataError) as error:
        load(name, str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert str(folder / SOURCES[name].file.path) in message
    return message


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_table_is_read_as_it_is(tmp_path, name):
    table = table_of(name)
    x, y = load(name, write(tmp_path, name, table))
    assert x.shape == SHAPES[name] and y.shape == SHAPES[name][:1]
    assert x.dtype == y.dtype == np.float64
    features = SHAPES[name][1]
    np.testing.assert_allclose(x, table[:, :features], rtol=1e-14)
    np.testing.assert_allclose(y, table[:, -1], rtol=1e-14)


def test_the_heating_load_is_no_feature_of_the_cooling_load(tmp_path):
    table = table_of("energy-efficiency")
    x, y = load("energy-efficiency", write(tmp_path, "energy-efficiency", table))
    assert not np.isin(table[:, 8], x).any()
    np.testing.assert_allclose(y, table[:, 9], rtol=1e-14)


def test_the_first_row_of_a_file_without_header_is_data(tmp_path):
    table = table_of("yacht")
    x, y = load("yacht", write(tmp_path, "yacht", table))
    np.testing.assert_allclose([*x[0], y[0]], table[0], rtol=1e-14)


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    folder = write(tmp_path, "yacht", table_of("yacht"))
    path = tmp_path / SOURCES["yacht"].file.path
    path.write_text(path.read_text() + "\n \n")
    assert load("yacht", folder)[0].shape == SHAPES["yacht"]


def test_empty_columns_of_a_spreadsheet_are_no_columns(tmp_path):
    """The published energy-efficiency sheet has two of them."""
    table = np.insert(table_of("energy-efficiency").astype(object), [10, 10], None, axis=1)
    assert (
        load("energy-efficiency", write(tmp_path, "energy-efficiency", table))[0].shape == SHAPES["energy-efficiency"]
    )


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "7,5", "unknown", "1e999", "0x1F"])
def test_a_cell_that_is_no_finite_number_is_named_by_row_and_column(tmp_path, name, cell):
    table = table_of(name).astype(object)
    table[9, 3] = cell
    write(tmp_path, name, table)
    assert "row 10, column 4" in refused(tmp_path, name)


@pytest.mark.parametrize("name", ["wine", "energy-efficiency"])
def test_an_empty_cell_is_named_by_row_and_column(tmp_path, name):
    table = table_of(name).astype(object)
    table[0, 0] = None
    write(tmp_path, name, table)
    assert "row 1, column 1" in refused(tmp_path, name)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_fewer_rows_are_an_error(tmp_path, name):
    table = table_of(name)
    write(tmp_path, name, table[:-1])
    assert f"{len(table) - 1} rows" in refused(tmp_path, name)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_fewer_columns_are_an_error(tmp_path, name):
    table = table_of(name)
    write(tmp_path, name, table[:, 1:])
    assert f"{table.shape[1] - 1} columns" in refused(tmp_path, name)


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_file_cut_anywhere_is_an_error(tmp_path, name, share):
    write(tmp_path, name, table_of(name))
    path = tmp_path / SOURCES[name].file.path
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(tmp_path, name)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("content", [b"", b"\n", b"<html><p>Not found</p></html>\n", b"\xff\xfe\x00\x81" * 50])
def test_what_is_no_table_is_an_error(tmp_path, name, content):
    path = tmp_path / SOURCES[name].file.path
    path.parent.mkdir()
    path.write_bytes(content)
    refused(tmp_path, name)


def test_a_csv_renamed_to_a_spreadsheet_is_an_error(tmp_path):
    path = tmp_path / SOURCES["energy-efficiency"].file.path
    path.parent.mkdir()
    pd.DataFrame(table_of("energy-efficiency")).to_csv(path, index=False)
    refused(tmp_path, "energy-efficiency")


def test_an_archive_that_is_no_spreadsheet_is_an_error(tmp_path):
    path = tmp_path / SOURCES["energy-efficiency"].file.path
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("table.csv", "1,2,3\n")
    refused(tmp_path, "energy-efficiency")


def test_a_wine_file_without_its_header_is_an_error(tmp_path):
    write(tmp_path, "wine", table_of("wine"))
    path = tmp_path / SOURCES["wine"].file.path
    path.write_text(path.read_text().split("\n", 1)[1])
    refused(tmp_path, "wine")


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError) as error:
        load("protein", str(tmp_path))
    assert "protein" in str(error.value) and all(name in str(error.value) for name in NAMES)


def test_diabetes_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("BSDL_DATA", str(tmp_path / "nowhere"))
    x, y = load("diabetes")
    expected_x, expected_y = load_diabetes(return_X_y=True, scaled=False)
    assert np.array_equal(x, expected_x) and np.array_equal(y, expected_y)
    assert x.shape == SHAPES["diabetes"]
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    x = rng.normal(5, [1, 10, 100, 0], (120, 4))  # the last column is constant
    return x, np.arange(120.0)  # the target names the row


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_the_split_is_that_of_scikit_learn(data, seed):
    x, y = data
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.1, random_state=seed)
    ours = split(x, y, seed)
    assert np.array_equal(ours.y, y_train) and np.array_equal(ours.y_test, y_test)
    assert len(ours.y_test) == 12
    mean, sd = x_train.mean(0), x_train.std(0)
    sd[3] = 1
    np.testing.assert_allclose(ours.x, (x_train - mean) / sd, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(ours.x_test, (x_test - mean) / sd, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(ours.x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(ours.x.std(0), [1, 1, 1, 0], atol=1e-12)


@pytest.mark.parametrize("val", [0.1, 0.3])
def test_validation_rows_come_out_of_the_training_part(data, val):
    x, y = data
    for seed in range(20):
        test, ours = split(x, y, seed).y_test, split(x, y, seed, val)
        assert not set(ours.y_test) & set(test)
        assert not set(ours.y) & set(test)
        assert set(ours.y) | set(ours.y_test) | set(test) == set(y)
        assert len(ours.y_test) == np.ceil(108 * val) == 108 - len(ours.y)


def test_with_validation_the_test_rows_are_not_looked_at(data):
    x, y = data
    spoiled_x, spoiled_y = x.copy(), y.copy()
    test = split(x, y, 5).y_test.astype(int)
    spoiled_x[test], spoiled_y[test] = np.nan, np.nan
    clean, spoiled = split(x, y, 5, 0.2), split(spoiled_x, spoiled_y, 5, 0.2)
    for part in ("x", "y", "x_test", "y_test"):
        assert np.array_equal(getattr(clean, part), getattr(spoiled, part))


@pytest.mark.skipif("BSDL_DATA" not in os.environ, reason="BSDL_DATA names no folder with the real files")
@pytest.mark.parametrize("name", NAMES)
def test_the_published_files(name, capsys):
    x, y = load(name)
    assert x.shape == SHAPES[name] and y.shape == SHAPES[name][:1]
    assert np.isfinite(x).all() and np.isfinite(y).all()
    assert capsys.readouterr().err == ""  # the checksums are right
    first = {
        "boston": (0.00632, 24.0),
        "yacht": (-2.3, 0.11),
        "energy-efficiency": (0.98, 21.33),
        "wine": (7.4, 5.0),
        "concrete": (540.0, 79.99),
        "power-plant": (14.96, 463.26),
        "diabetes": (59.0, 151.0),
    }
    assert (x[0, 0], y[0]) == pytest.approx(first[name], abs=0.01)
