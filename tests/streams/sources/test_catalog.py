"""The named streams."""

import numpy as np
import pytest

from streams.batch import check, concatenate
from streams.sources.catalog import (
    IMAGE_STREAMS,
    LABELLED,
    LONGEST,
    PHASE,
    SOURCES,
    SYNTHETIC,
    UnknownStreamError,
    endless,
    get,
)
from streams.sources.names import ENDLESS, EXAMPLES, IMAGES, NAMES


def test_help_names_the_streams_and_sources_that_there_are() -> None:
    assert (*IMAGE_STREAMS, *SYNTHETIC, *LABELLED) == NAMES
    assert tuple(sorted(SOURCES)) == IMAGES


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_has_the_shape_that_it_declares(name: str) -> None:
    stream = get(name, 550, source="digits")
    batches = list(stream.batches(100))
    assert [len(b) for b in batches] == [100] * 5 + [50]
    for batch in batches:
        check(batch, stream.width, stream.classes)
        assert batch.features.dtype == (np.uint8 if name in IMAGE_STREAMS else np.float32)
    labels = concatenate(batches).labels
    assert len(np.unique(labels)) == stream.classes
    assert stream.shifts[0].example == 0


@pytest.mark.parametrize("name", NAMES)
def test_how_a_stream_is_cut_does_not_change_it(name: str) -> None:
    stream = get(name, 430, source="digits")
    one, other = concatenate(list(stream.batches(430, 3))), concatenate(list(stream.batches(7, 3)))
    np.testing.assert_array_equal(one.features, other.features)
    np.testing.assert_array_equal(one.labels, other.labels)
    another = concatenate(list(stream.batches(430, 4)))
    assert not np.array_equal(one.features, another.features)


def test_abrupt_shifts_after_each_third() -> None:
    assert [(s.example, s.what) for s in get("abrupt", 60_000, "digits").shifts] == [
        (0, "90°"),
        (20_000, "0°"),
        (40_000, "45°"),
    ]
    assert [s.example for s in get("abrupt", 1_000, "digits").shifts] == [0, 400, 800]


@pytest.mark.parametrize("name", ["hyperplane", "rbf"])
def test_a_stream_that_drifts_all_the_time_never_jumps(name: str) -> None:
    longer, other = get(name, EXAMPLES + 200), get(name, EXAMPLES + 200)
    (*_, last) = longer.batches(100, seed=0)
    first = next(iter(other.batches(100, seed=1)))
    assert not np.array_equal(last.features, first.features)
    assert len(longer.shifts) == 1


def test_permuted_labels_keep_the_images() -> None:
    length = 2 * PHASE
    plain = concatenate(list(get("stationary", length, "digits").batches(length)))
    drifted = concatenate(list(get("labels", length, "digits").batches(length)))
    np.testing.assert_array_equal(plain.features, drifted.features)
    for start in (0, PHASE):
        part = slice(start, start + PHASE)
        pairs = set(zip(plain.labels[part], drifted.labels[part], strict=True))
        assert len(pairs) == 10
        assert len({new for _, new in pairs}) == 10


def test_permuted_pixels_keep_each_images_values() -> None:
    plain = concatenate(list(get("stationary", 100, "digits").batches(100)))
    drifted = concatenate(list(get("permuted", 100, "digits").batches(100)))
    assert not np.array_equal(plain.features, drifted.features)
    np.testing.assert_array_equal(np.sort(plain.features), np.sort(drifted.features))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_generators_examples_are_finite(name: str) -> None:
    features = next(get(name, 200).batches(200)).features
    assert np.isfinite(features).all()


def test_the_error_for_an_unknown_stream_lists_the_names() -> None:
    with pytest.raises(UnknownStreamError, match="abrupt"):
        get("abrubt")


def test_an_endless_abrupt_stream_turns_in_a_circle_after_each_so_many_examples() -> None:
    stream = endless("abrupt", 150, "digits")
    assert [(s.example, s.what) for s in stream.shifts[:5]] == [
        (0, "90°"),
        (150, "0°"),
        (300, "45°"),
        (450, "90°"),
        (600, "0°"),
    ]
    assert stream.examples >= LONGEST - 150
    short = concatenate(list(get("abrupt", 300, "digits").batches(100, 3)))  # the first 100 alike
    first = next(stream.batches(100, 3))
    np.testing.assert_array_equal(first.features, short.part(0, 100).features)


@pytest.mark.parametrize("name", [name for name in ENDLESS if name in NAMES])
def test_an_endless_stream_can_be_read_at_once(name: str) -> None:
    stream = endless(name, 10_000, "digits")
    batch = next(stream.batches(100, 0))
    check(batch, stream.width, stream.classes)
    assert stream.shifts[0].example == 0
    assert stream.examples >= LONGEST - 10_000
