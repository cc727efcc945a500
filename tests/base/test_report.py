"""What is printed: tables that can be read whatever the width."""

from distill.watch.report import show_report
from instil.base.runs.report import show

WIDTH = 110  # of what is not a terminal


def test_a_table_that_is_too_wide_stands_on_its_side(capsys):
    columns = [f"a column number {n}" for n in range(8)]
    rows = [
        {"": name} | {column: f"{name} in {column}" for column in columns}
        for name in ("one", "two")
    ]
    show("title", rows)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= WIDTH
    assert all(value in said for row in rows for value in row.values())  # nothing is cut off
    assert "one in a column number 3" in next(x for x in said.splitlines() if "number 3" in x)


def test_a_table_that_fits_stands_as_it_is(capsys):
    show("title", [{"what": "a", "value": "1"}, {"what": "b", "value": "2"}])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if "│" in line] == [
        "a",
        "b",
    ]


def test_a_floor_of_more_images_than_were_drawn_has_a_column_with_a_name(capsys):
    mean = {"fd": {"mean": 0.5, "std": 0.1}, "images_per_second": 3.0}
    show_report(
        {"fd_name": "FD", "protocol": "p", "instructor": mean | {"nfe": 35}}
        | {"student": mean | {"nfe": 1}, "floor": 0.477, "floor_n": 599, "ratio": 1.0}
        | {"seconds": 1, "forwards_per_update": 9, "peak_memory_bytes": 1}
    )
    header, *rows = (x for x in capsys.readouterr().out.splitlines() if "┃" in x or "│" in x)
    place = header.index("at n=599")
    assert [row[place : place + 8].strip() for row in rows] == ["-", "-", "0.477"]
