"""How a corpus is cut: every row in one slice, the same ones each time."""

from __future__ import annotations

import pytest

from rtr_ray.slices import Slice, cut


def ids(count: int) -> list[str]:
    return [f"row {i}" for i in range(count)]


def held(slices: list[Slice], tables: dict[str, list[str]]) -> dict[str, int]:
    """How often each row is in a slice."""
    found = {name: 0 for names in tables.values() for name in names}
    for one in slices:
        for key in one.tables:
            for name, inside in zip(tables[key], one.rows(tables[key]), strict=True):
                found[name] += bool(inside)
    return found


@pytest.mark.parametrize("sizes", [[1], [99], [250], [5000], [30, 4000, 1], [400] * 30, [7] * 300])
def test_every_row_is_in_one_slice(sizes: list[int]) -> None:
    tables, names = {}, iter(ids(sum(sizes)))
    for number, size in enumerate(sizes):
        tables[f"tables/{number:03d}"] = [next(names) for _ in range(size)]
    slices = cut({key: len(rows) for key, rows in tables.items()})
    assert set(held(slices, tables).values()) == {1}
    assert [one.number for one in slices] == list(range(len(slices)))
    assert len(slices) <= 2 * 40 + 1


def test_a_small_corpus_is_one_slice_and_a_large_one_has_slices_that_a_task_can_hold() -> None:
    assert cut({"a": 150}) == [Slice(0, ("a",))]
    assert cut({}) == []
    large = cut({f"{i:04d}": 40_000 for i in range(250)})
    assert 200 <= len(large) <= 300
    assert max(len(one.tables) / one.of for one in large[1:]) * 40_000 <= 80_000


def test_one_large_part_is_cut_by_ids() -> None:
    pilot, *slices = cut({"a": 20_000})
    assert pilot.is_pilot
    assert [(one.part, one.of) for one in slices] == [(part, 40) for part in range(40)]
    sizes = [int(one.rows(ids(20_000)).sum()) for one in slices]
    assert sum(sizes) == 20_000 - int(pilot.rows(ids(20_000)).sum())
    assert min(sizes) > 400


@pytest.mark.parametrize("tables", [{"a": 1000}, {"a": 20_000}, {f"{i:04d}": 300 for i in range(500)}])
def test_a_pilot_is_about_fifty_rows_from_many_parts(tables: dict[str, int]) -> None:
    pilot = cut(tables)[0]
    rows = sum(tables[key] for key in pilot.tables)
    assert rows * pilot.pilot / (1 << 24) == pytest.approx(50, rel=0.01)
    assert len(pilot.tables) >= min(len(tables), 16)
    assert not any(one.is_pilot for one in cut(tables)[1:])


def test_the_order_in_which_parts_came_does_not_matter() -> None:
    assert cut({"b": 300, "a": 500}) == cut({"a": 500, "b": 300})


def test_a_slice_is_what_its_json_says() -> None:
    for one in [*cut({"a": 500, "b": 300}), Slice(7, ("a",), ids="rest/000007.parquet")]:
        assert Slice.from_json(one.to_json()) == one
