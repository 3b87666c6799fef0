"""What a step had best read: groups of rows, tiles of attention, and the measurement behind them."""

from __future__ import annotations

import pytest

from edgeqwen.worker.attention import TILE, _attend, cpu_kernels, measure_untiled
from edgeqwen.worker.kernels import Kernels

PLAIN = Kernels()
SHAPED = Kernels(rows=4, tile=64, per_cell=0.4 / 2000, untiled=lambda: 2.5)


@pytest.mark.parametrize("kernels", [PLAIN, SHAPED])
def test_what_is_read_holds_what_is_missing_and_no_more_than_there_is(kernels: Kernels) -> None:
    for n_cached in (0, 1, 3, 63, 64, 500, 4000):
        for n_pending in range(1, 130):
            assert n_pending <= kernels.to_read(n_pending, n_cached) <= n_pending + n_cached


def test_without_steps_nothing_is_read_twice() -> None:
    assert all(PLAIN.to_read(n_pending, 4000) == n_pending for n_pending in range(1, 600))


@pytest.mark.parametrize(("n_pending", "n_read"), [(1, 1), (3, 3), (4, 4), (5, 8), (23, 24), (513, 516)])
def test_rows_come_in_groups_but_for_fewer_than_one(n_pending: int, n_read: int) -> None:
    assert SHAPED.to_read(n_pending, 100) == n_read


def test_a_tile_is_read_where_it_is_sooner_done() -> None:
    shallow, deep = ({n for n in range(1, 64) if SHAPED.to_read(n, depth) == 64} for depth in (128, 2000))
    assert shallow == {61, 62, 63}  # as groups of four
    assert deep == set(range(min(deep), 64))
    assert 40 < min(deep) < 52
    assert Kernels(4, 64, 0.4 / 2000, untiled=lambda: 1.0).to_read(50, 2000) == 52


def test_a_tile_wants_as_much_in_the_cache() -> None:
    assert SHAPED.to_read(57, 40) == 60
    slow = Kernels(4, 64, 1.0, untiled=lambda: 10.0)
    assert slow.to_read(20, 63) == 20
    assert slow.to_read(20, 64) == 64


def test_nothing_is_measured_before_it_is_asked_for() -> None:
    def never() -> float:
        raise AssertionError("measured")

    kernels = Kernels(4, 64, 0.4 / 2000, never)
    assert kernels.to_read(500, 2000) == 500
    assert kernels.to_read(10, 30) == 12


@pytest.mark.parametrize("room", [32, 63, 128, 512])
@pytest.mark.parametrize("kernels", [PLAIN, SHAPED])
def test_chunks_make_up_the_prompt(kernels: Kernels, room: int) -> None:
    for start in (0, 5, 24, 256, 1999):
        for n_pending in range(1, 1300, 3):
            sizes = []
            while sum(sizes) < n_pending:
                sizes.append(kernels.chunk(start + sum(sizes), n_pending - sum(sizes), room))
                assert 0 < sizes[-1] <= room
            assert sum(sizes) == n_pending
            assert len(sizes) == -(-n_pending // room), "no more chunks than it takes"
            if 2 * kernels.tile <= room < n_pending:
                assert min(sizes) >= kernels.tile


def test_the_last_chunk_is_a_tile() -> None:
    first = SHAPED.chunk(1024, 530, 512)
    assert 530 - first == 66  # in groups of four from the front
    assert PLAIN.chunk(1024, 530, 512) == 512


def test_no_room_reads_nothing() -> None:
    assert SHAPED.chunk(10, 1, 0) == SHAPED.chunk(10, 500, 0) == 0


@pytest.mark.parametrize("head_size", [64, 80, 128, 256, 512])
def test_the_shipped_library_computes_what_is_measured(head_size: int) -> None:
    assert 0 < _attend(head_size, TILE) < 1
    assert 1.0 <= measure_untiled(head_size) < 100


@pytest.mark.parametrize(("n_embd", "head_size"), [(0, 64), (896, 0), (896, 513), (896, -1)])
def test_a_shape_that_cannot_be_goes_without_tiles(n_embd: int, head_size: int) -> None:
    assert cpu_kernels(n_embd, 14, head_size, repacks=True, has_tiles=True).tile == 1


def test_what_a_load_goes_without_is_left_out() -> None:
    assert cpu_kernels(896, 14, 64, repacks=True, has_tiles=False) == Kernels(rows=4)
    shaped = cpu_kernels(896, 14, 64, repacks=False, has_tiles=True)
    assert (shaped.rows, shaped.tile) == (1, 64)
