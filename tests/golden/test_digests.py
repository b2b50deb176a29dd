"""Equal batches give the states that they gave when the golden files were written."""

import pytest
import torch

from tests.golden.compare import read
from tests.golden.configurations import (
    NAMES,
    NOT_STANDARDIZED,
    fingerprint,
    fresh,
    learned_digest,
)
from tests.golden.digests import (
    CHECKPOINTS,
    DIGESTS,
    FORMAT_2,
    OPENED,
    bits,
    check,
    go_on,
    learn,
    one_thread,
    tolerance_of,
)


@pytest.fixture(scope="module")
def is_exact() -> bool:
    return bool(read(DIGESTS)["bits"] == bits())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    one_thread()


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_learns_what_it_always_learned(name: str, is_exact: bool) -> None:
    check(
        read(DIGESTS)["configurations"][name], learn(name), None if is_exact else tolerance_of(name)
    )


@pytest.mark.parametrize("name", [*NAMES, *FORMAT_2])
def test_a_checkpoint_of_an_older_format_opens_and_goes_on(name: str, is_exact: bool) -> None:
    found = go_on(CHECKPOINTS / f"{name}.safetensors")
    golden = read(OPENED)[name]
    assert found["learned"] == golden["learned"]
    # what older formats lack, such as magnitudes of inputs, is computed when they are opened
    assert found["sha256"] == golden["sha256"] or not is_exact
    check(golden, found, None if is_exact else tolerance_of(name))


def test_every_checkpoint_of_an_older_format_is_opened() -> None:
    paths = CHECKPOINTS.rglob("*.safetensors")
    names = {str(path.relative_to(CHECKPOINTS).with_suffix("")) for path in paths}
    assert names == read(OPENED).keys() == {*NAMES, *FORMAT_2}


@pytest.mark.parametrize("name", [n for n in NAMES if n.partition("-")[0] in NOT_STANDARDIZED])
def test_without_standardization_older_versions_learned_the_same(name: str) -> None:
    assert read(OPENED)[name]["learned"] == read(DIGESTS)["configurations"][name]["learned"]


@pytest.mark.parametrize("name", FORMAT_2)
def test_formats_1_and_2_of_a_configuration_open_as_one_state(name: str) -> None:
    opened = read(OPENED)
    assert opened[name] == opened[FORMAT_2[name]]


def test_bits_are_told_apart_by_the_number_of_threads() -> None:
    before = bits()
    torch.set_num_threads(2)
    try:
        assert fingerprint() != before
    finally:
        one_thread()


def test_a_pool_of_one_has_the_digest_that_its_expert_had_alone() -> None:
    golden = fresh("adam-restless")
    golden.fold(range(5))
    mine = {k: v for k, v in golden.tensors().items() if not k.startswith("shadow.")}
    alone = {k.replace(".inner.0.", ".inner."): v[0] for k, v in mine.items() if v.dim()}
    assert alone.keys() != mine.keys()
    assert learned_digest(alone) == learned_digest(mine) == golden.learned()["served"]


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.running_mean", "optimizer.layers.0.weight.log_gain",
     "optimizer.layers.4.bias.inner.0.exp_avg_sq", "optimizer.layers.0.weight.step"],
)  # fmt: skip
def test_the_digest_of_what_is_learned_sees_every_tensor(name: str) -> None:
    tensors = fresh("adam-restless").tensors()
    before = learned_digest(tensors)
    tensors[name] = tensors[name] + 1
    assert learned_digest(tensors) != before
