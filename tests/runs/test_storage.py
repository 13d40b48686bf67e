import errno
import json
import resource
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from ahm_gym.errors import InputError
from ahm_gym.runs import storage
from ahm_gym.runs.storage import (
    load_state,
    save_state,
)

DTYPES = [
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
]


def assert_same(one, two):
    """Equal in value, type, dtype and order of keys."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert list(one) == list(two)
        assert [type(key) for key in one] == [type(key) for key in two]
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        assert torch.equal(one, two)
    elif isinstance(one, (np.ndarray, np.generic)):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    elif one != one:
        assert two != two
    else:
        assert one == two


def there_and_back(folder, state):
    save_state(folder, state)
    return load_state(folder)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_a_tensor_comes_back_with_its_dtype_and_shape(tmp_path, dtype, shape):
    tensor = torch.arange(6)[: int(np.prod(shape))].reshape(shape).to(dtype)
    assert_same(there_and_back(tmp_path, {"tensor": tensor}), {"tensor": tensor})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers(), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(value=VALUES)
def test_nested_values_come_back_as_they_were(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("state")
    assert_same(there_and_back(folder, {"value": value}), {"value": value})


def test_the_state_of_an_optimiser_comes_back(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "model": dict(layer.state_dict())}
    assert_same(there_and_back(tmp_path, state), state)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_a_numpy_generator_continues_where_it_was(tmp_path, kind):
    generator = np.random.Generator(kind(3))
    generator.random(5)
    state = there_and_back(tmp_path, {"rng": generator.bit_generator.state})
    other = np.random.Generator(kind(0))
    other.bit_generator.state = state["rng"]
    np.testing.assert_array_equal(other.random(5), generator.random(5))


def test_arrays_and_array_scalars_come_back_as_such(tmp_path):
    frozen = np.arange(6, dtype=np.uint16).reshape(2, 3)
    frozen.flags.writeable = False
    state = {"array": frozen.T, "empty": np.zeros((0, 2)), "scalar": np.float32(0.5), "count": np.int64(3)}
    back = there_and_back(tmp_path, state)
    assert_same(back, state)
    back["array"][0, 0] = 7


def test_an_ordered_dict_of_parameters_comes_back_as_a_plain_dict(tmp_path):
    back = there_and_back(tmp_path, OrderedDict(weight=torch.nn.Parameter(torch.ones(2))))
    assert_same(back, {"weight": torch.ones(2)})


def test_tensors_that_share_a_storage_are_all_saved(tmp_path):
    base = torch.arange(6.0)
    state = {"base": base, "same": base, "view": base[2:], "strided": base.reshape(2, 3).T}
    assert_same(there_and_back(tmp_path, state), state)


def test_keys_with_slashes_do_not_collide(tmp_path):
    state = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1), "__metadata__": torch.ones(2)}
    assert_same(there_and_back(tmp_path, state), state)


def test_a_value_that_cannot_be_saved_is_named_with_its_place(tmp_path):
    with pytest.raises(TypeError, match="state/model/1 is a object"):
        save_state(tmp_path, {"model": [0, object()]})
    assert list(tmp_path.iterdir()) == []


def test_files_are_strict_json_and_safetensors_only(tmp_path):
    save_state(tmp_path, {"loss": float("nan"), "weight": torch.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "state.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_state_is_bad_input(tmp_path, name, damage):
    save_state(tmp_path, {"weight": torch.ones(20), "numbers": [1, 2]})
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 60 if damage == "truncated" else 0])
    with pytest.raises(InputError, match="holds no readable state"):
        load_state(tmp_path)


def test_a_full_disk_is_an_os_error(tmp_path):
    # A limit on the size of files causes an error in the middle of a write, like a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_state(tmp_path, {"weight": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "state.safetensors")


def test_another_failure_of_safetensors_is_passed_on(tmp_path, monkeypatch):
    def fail(tensors, path):
        raise SafetensorError("odd")

    monkeypatch.setattr(storage, "save_file", fail)
    with pytest.raises(SafetensorError, match="odd"):
        save_state(tmp_path, {})
