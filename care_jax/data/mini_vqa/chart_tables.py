"""Public-domain tables for the charts of mini_vqa, from files inside the vega_datasets package.

Sources: US Bureau of Labor Statistics (us-employment), US Energy Information Administration (iowa-electricity), US
National Oceanic and Atmospheric Administration (weather and temperatures), Nightingale 1858 (crimea), Playfair 1821
(wheat).
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import json


@dataclasses.dataclass(frozen=True)
class Series:
    """One column of a table, in time order. `key` is "table:column"; rows without a value are left out."""

    table: str
    key: str
    values: tuple[float, ...]


# Table file -> its numeric columns; () takes every column but the first.
_COLUMNS = {
    "us-employment.csv": (),
    "seattle-weather.csv": ("precipitation", "temp_max", "temp_min", "wind"),
    "seattle-temps.csv": ("temp",),
    "sf-temps.csv": ("temp",),
    "crimea.json": ("wounds", "other", "disease"),
    "wheat.json": ("wheat", "wages"),
}


def load_series() -> list[Series]:
    """Reads all tables; nothing of vega_datasets is imported, since importing it needs pandas.

    Returns:
        The series, in a fixed order, those of one table together.

    Raises:
        ModuleNotFoundError: vega-datasets is not installed.
    """
    series = []
    for file, columns in _COLUMNS.items():
        table = file.split(".")[0]
        rows = _rows(file)
        for column in columns or list(rows[0])[1:]:
            values = tuple(float(row[column]) for row in rows if column in row)
            series.append(Series(table, f"{table}:{column}", values))
    by_fuel: dict[str, list[float]] = {}
    for row in _rows("iowa-electricity.csv"):
        by_fuel.setdefault(row["source"].split()[0].lower(), []).append(float(row["net_generation"]))
    for fuel, generation in by_fuel.items():
        series.append(Series("iowa-electricity", f"iowa-electricity:{fuel}", tuple(generation)))
    return series


def _rows(file: str) -> list[dict[str, str]]:
    path = importlib.metadata.distribution("vega-datasets").locate_file(f"vega_datasets/_data/{file}")
    with open(str(path), encoding="utf-8") as handle:
        text = handle.read()
    return json.loads(text) if file.endswith(".json") else list(csv.DictReader(io.StringIO(text)))
