"""Read the index that a run leaves: with DuckDB (pip install duckdb) and with pandas (pip install pandas).

Run::

    vbp explain photos out --weights demo
    python examples/read_index.py out
"""

import sys

import duckdb
import pyarrow.dataset as ds
from PIL import Image, ImageDraw


def main(out: str) -> None:
    """Show what failed, where the network looks by class, and the strongest mask's peak in its photo."""
    index = f"{out}/index/*.parquet"
    print("failed:", duckdb.sql(f"SELECT error_type, count(*) FROM '{index}' WHERE status = 'error' GROUP BY ALL"))

    columns = ["key", "uri", "label", "mask_area", "log10_max", "image_peak_x", "image_peak_y"]
    rows = ds.dataset(f"{out}/index").to_table(columns=columns, filter=ds.field("status") == "ok").to_pandas()
    print(rows.groupby("label", dropna=False)["mask_area"].describe())

    strongest = rows.loc[rows["log10_max"].idxmax()]
    with Image.open(strongest["uri"]) as image:
        photo = image.convert("RGB")
    x, y = strongest["image_peak_x"], strongest["image_peak_y"]
    ImageDraw.Draw(photo).ellipse((x - 5, y - 5, x + 5, y + 5), outline="red", width=2)
    photo.save("strongest.jpg")
    print(f"{strongest['key']}: peak at ({x:.1f}, {y:.1f}), drawn in strongest.jpg")


if __name__ == "__main__":
    main(*sys.argv[1:])
