"""Which model for which machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeqwen.models.catalogue import Catalogue, load_catalogue
from edgeqwen.models.fit import Estimate
from edgeqwen.models.measured import Load, Measured
from edgeqwen.models.recommend import PURPOSES, Machine, Purpose, recommend
from edgeqwen.paths import shipped_catalogue

GB = 10**9


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(shipped_catalogue(), Path("none"))


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_better_machine_never_gets_a_smaller_model(catalogue: Catalogue, purpose: Purpose) -> None:
    sizes = []
    for gigabytes, speed in ((1, 5), (2, 10), (4, 20), (8, 40), (16, 80), (64, 400)):
        choice = recommend(catalogue, purpose, Machine(gigabytes * GB, speed * GB))
        assert choice is not None
        assert choice.verdict == ("fits" if choice.total_bytes <= 0.8 * gigabytes * GB else choice.verdict)
        sizes.append(choice.model.parameters_b)
    assert sizes == sorted(sizes)


def test_a_slow_machine_gets_a_model_it_can_speak_with(catalogue: Catalogue) -> None:
    choice = recommend(catalogue, "chat", Machine(64 * GB, 6 * GB))
    assert choice is not None
    assert choice.is_fluent


def test_a_machine_too_small_for_all_is_told_so(catalogue: Catalogue) -> None:
    choice = recommend(catalogue, "vision", Machine(GB // 4, 20 * GB))
    assert choice is not None
    assert choice.verdict == "no"


def test_the_purpose_is_kept_to(catalogue: Catalogue) -> None:
    machine = Machine(64 * GB, 400 * GB)
    for purpose in ("code", "vision"):
        choice = recommend(catalogue, purpose, machine)
        assert choice is not None
        assert purpose in choice.model.capabilities


def parts(total: int) -> Estimate:
    """A tenth of it is scratch space and process."""
    return Estimate(total - total // 10, 0, 0, total // 10, 0)


def test_corrections_come_from_the_nearest_measurement(tmp_path: Path) -> None:
    measured = Measured(tmp_path / "state" / "measured.json")
    assert measured.correction(Load("a", 2048, "f16"), parts(100)) == 0
    measured.put(Load("a", 2048, "f16"), estimated=1000, measured=1100)
    measured.put(Load("a", 8192, "f16"), estimated=2000, measured=1900)
    assert measured.correction(Load("a", 2048, "f16"), parts(1000)) == 100
    assert measured.correction(Load("a", 10000, "f16"), parts(2200)) == -100
    measured.put(Load("b", 2048, "f16"), estimated=1000, measured=1200)
    assert measured.correction(None, parts(1000)) == 75  # between 0.95 of a and 1.2 of b
    assert measured.measured(Load("b", 2048, "q8_0")) is None


def test_the_correction_of_another_model_takes_nothing_off_weights_and_cache(tmp_path: Path) -> None:
    measured = Measured(tmp_path / "measured.json")
    measured.put(Load("a", 2048, "f16"), estimated=1000, measured=800)
    assert measured.correction(None, parts(1000)) == -100


def test_damaged_measurements_are_none(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('[{"load": 3}]')
    assert Measured(tmp_path / "m.json").correction(None, parts(5)) == 0
