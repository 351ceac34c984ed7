import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.runs import checkpoint, identity
from comarl.runs.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    DamagedCheckpointWarning,
    OtherConfiguration,
)

CONFIG: dict[str, Any] = {
    "kind": "Run",
    "algorithm": {"kind": "Race", "beta": 0.1, "hidden": [64, 64]},
    "seeds": 3,
}


class Part(NamedTuple):
    weight: jax.Array
    mask: jax.Array


def make_state(number: int = 0) -> dict:
    """Every type of leaf that a run may hold; small, so that a damage test can try many bytes."""
    key = jax.random.key(number)
    return {
        "key": key,
        "keys": jax.random.split(key, (2, 3)),
        "half": jax.random.normal(key, (3, 2), jnp.bfloat16),
        "part": Part(jax.random.normal(key, (2, 3)), jnp.array([True, False, True])),
        "odd": jnp.array([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
        "count": (jnp.int32(number), jnp.zeros((0, 4)), jnp.uint8(7)),
    }


def bits(tree) -> list:
    """Type, shape and bytes of every leaf: equal only if the trees are, bit for bit."""
    leaves, structure = jax.tree.flatten(tree)

    def raw(leaf):
        return (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )

    return [
        structure,
        *((leaf.dtype, leaf.shape, np.asarray(raw(leaf)).tobytes()) for leaf in leaves),
    ]


def shapes():
    return jax.eval_shape(make_state)


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def damage(path: Path) -> None:
    """Flips a bit of an array."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if "weight" in name)
        content = archive.read(name)
    flip(path, path.read_bytes().index(content) + len(content) - 1)


def test_every_leaf_comes_back_bit_for_bit_from_shapes_alone(tmp_path):
    state, header = (
        make_state(),
        {"config": CONFIG, "versions": {"jax": "0"}, "round": 3, "more": [1, None]},
    )
    checkpoint.save(tmp_path / "a.npz", state, header)
    loaded, loaded_header = checkpoint.load(tmp_path / "a.npz", shapes())
    assert bits(loaded) == bits(state)
    assert loaded_header == header
    assert checkpoint.read_header(tmp_path / "a.npz") == header
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_key_comes_back_as_a_key_of_its_kind_and_draws_the_same(tmp_path, implementation):
    state = jax.random.split(jax.random.key(5, impl=implementation), 2)
    checkpoint.save(tmp_path / "a.npz", state, {})
    loaded, _ = checkpoint.load(tmp_path / "a.npz", jax.eval_shape(lambda: state))
    assert loaded.dtype == state.dtype
    assert (jax.random.bits(loaded[1]) == jax.random.bits(state[1])).all()


def test_a_key_of_another_kind_is_refused(tmp_path):
    checkpoint.save(tmp_path / "a.npz", {"key": jax.random.key(0, impl="rbg")}, {})
    with pytest.raises(DamagedCheckpoint, match=r"key<rbg>.*key<fry>"):
        checkpoint.load(tmp_path / "a.npz", {"key": jax.random.key(0)})


def test_functions_are_taken_from_the_structure_and_arrays_from_the_file(tmp_path):
    network = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    checkpoint.save(tmp_path / "a.npz", network, {})
    other = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(1))
    loaded, _ = checkpoint.load(tmp_path / "a.npz", other)
    assert eqx.tree_equal(loaded, network)


def test_numpy_leaves_stay_numpy_with_their_wide_types(tmp_path):
    state = {
        "seeds": np.array([2**40, -1]),
        "time": np.array(0.1),
        "column": np.arange(6.0).reshape(2, 3).T,
    }
    checkpoint.save(tmp_path / "a.npz", state, {})
    loaded, _ = checkpoint.load(tmp_path / "a.npz", state)
    assert all(isinstance(leaf, np.ndarray) for leaf in loaded.values())
    assert bits(loaded) == bits(state)


def test_an_array_that_is_read_in_many_pieces_comes_back_and_its_damage_is_found(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "CHUNK", 7)
    path = tmp_path / "a.npz"
    checkpoint.save(path, make_state(), {})
    assert bits(checkpoint.load(path, shapes())[0]) == bits(make_state())
    damage(path)
    with pytest.raises(DamagedCheckpoint, match="Bad CRC"):
        checkpoint.load(path, shapes())


def test_a_leaf_that_would_be_lost_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.npz"
    checkpoint.save(path, make_state(), {})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"\['rate'\] is a float"):
        checkpoint.save(path, {"rate": 0.1}, {})
    with pytest.raises(TypeError, match="objects"):  # found only while the file is being written
        checkpoint.save(path, {"a": np.zeros(3), "b": np.array([None])}, {})
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_flipped_bit_is_found_wherever_it_matters(tmp_path):
    path = tmp_path / "a.npz"
    state, header = make_state(), {"config": CONFIG, "round": 3}
    checkpoint.save(path, state, header)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    found = 0
    for position in random.choice(len(content), 500, replace=False):
        path.write_bytes(content)
        flip(path, position, int(random.integers(8)))
        try:
            loaded, loaded_header = checkpoint.load(path, shapes())
        except DamagedCheckpoint as error:
            found += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # the bit was one that zip keeps twice or does not need, such as a time stamp
            assert bits(loaded) == bits(state) and loaded_header == header
    assert found > 250


def test_a_flipped_bit_of_any_array_is_found_and_the_array_is_named(tmp_path):
    path = tmp_path / "a.npz"
    checkpoint.save(path, make_state(), {})
    damage(path)
    with pytest.raises(
        DamagedCheckpoint, match=r"a\.npz: its array \['part'\]\.weight cannot be read: Bad CRC"
    ):
        checkpoint.load(path, shapes())


def test_a_file_that_was_cut_off_anywhere_is_damaged(tmp_path):
    path = tmp_path / "a.npz"
    checkpoint.save(path, make_state(), {"config": CONFIG})
    content = path.read_bytes()
    for length in [*range(0, len(content), 23), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedCheckpoint):
            checkpoint.load(path, shapes())


def test_a_file_that_is_no_checkpoint_is_damaged_and_one_that_is_not_there_is_missing(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(DamagedCheckpoint, match=r"text\.npz: File is not a zip file"):
        checkpoint.load(tmp_path / "text.npz", shapes())
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(DamagedCheckpoint, match=r"it has no header\.json"):
        checkpoint.load(tmp_path / "other.npz", shapes())
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.npz", shapes())


def test_an_array_that_is_missing_or_surplus_or_of_another_shape_is_named(tmp_path):
    path = tmp_path / "a.npz"
    checkpoint.save(path, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}, {})
    for like, cause in [
        (
            {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2), "c": jnp.zeros(1)},
            r"it has no array \['c'\]",
        ),
        ({"a": jnp.zeros((2, 3))}, r"it has an array \['b'\]"),
        (
            {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)},
            r"its array \['a'\] is float32\[2,3\], .* float32\[3,2\]",
        ),
        (
            {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2, jnp.int32)},
            r"its array \['b'\] is float32\[2\], .* int32\[2\]",
        ),
    ]:
        with pytest.raises(DamagedCheckpoint, match=cause):
            checkpoint.load(path, like)


def test_a_member_that_was_taken_out_is_named(tmp_path):
    checkpoint.save(tmp_path / "a.npz", make_state(), {})
    with (
        zipfile.ZipFile(tmp_path / "a.npz") as old,
        zipfile.ZipFile(tmp_path / "b.npz", "w") as new,
    ):
        for name in old.namelist():
            if "half" not in name:
                new.writestr(name, old.read(name))
    with pytest.raises(DamagedCheckpoint, match=r"its array \['half'\] cannot be read"):
        checkpoint.load(tmp_path / "b.npz", shapes())


def saved(folder: Path, *numbers: int) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for number in numbers:
        checkpoints.save(number, make_state(number), {"config": CONFIG, "round": number})
    return checkpoints


def test_there_is_no_newest_checkpoint_before_the_first(tmp_path):
    assert Checkpoints(tmp_path / "none").newest(shapes(), CONFIG) is None


def newest(checkpoints):
    """State and header of the newest checkpoint, of which there is one."""
    found = checkpoints.newest(shapes(), CONFIG)
    assert found is not None
    return found


def test_the_newest_two_are_kept_and_stale_temporaries_are_not(tmp_path):
    checkpoints = saved(tmp_path, 8, 9, 10)
    (tmp_path / "checkpoint-00000011.npz.partial").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    saved(tmp_path, 12)
    names = {"checkpoint-00000010.npz", "checkpoint-00000012.npz", "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names
    state, header = newest(checkpoints)
    assert header["round"] == 12 and bits(state) == bits(make_state(12))


def test_a_run_that_went_back_replaces_its_old_future(tmp_path):
    checkpoints = saved(tmp_path, 20, 30)
    checkpoints.path(30).rename(checkpoints.path(40))  # two from later on, damaged or not
    checkpoints.save(25, make_state(25), {"config": CONFIG, "round": 25})
    assert checkpoints.numbers() == [25, 20]


def test_the_older_one_is_used_with_a_warning_if_the_newest_is_damaged(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    damage(checkpoints.path(2))
    with pytest.warns(
        DamagedCheckpointWarning, match=r"00000002\.npz: .*Bad CRC.* older checkpoint-00000001\.npz"
    ):
        state, header = newest(checkpoints)
    assert header["round"] == 1 and bits(state) == bits(make_state(1))
    told = []
    checkpoints.newest(shapes(), CONFIG, tell=told.append)
    assert len(told) == 1


def test_if_all_are_damaged_both_are_named_with_a_remedy(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.path(1).write_bytes(b"")
    damage(checkpoints.path(2))
    with pytest.raises(
        DamagedCheckpoint, match=r"00000002.*00000001.*Delete .* from the beginning"
    ):
        checkpoints.newest(shapes(), CONFIG)


def test_another_runs_checkpoint_is_refused_by_the_first_field_that_differs(tmp_path):
    checkpoints = saved(tmp_path, 1)
    other = {**CONFIG, "algorithm": {**CONFIG["algorithm"], "beta": 0.0}, "seeds": 4}
    with pytest.raises(
        OtherConfiguration,
        match=r"^algorithm\.beta: the checkpoint has 0\.1, this run has 0\.0 .*own",
    ):
        # The configuration is looked at before the arrays
        checkpoints.newest({"other": "shapes"}, other)


@pytest.mark.parametrize(
    "theirs, ours, difference",
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": [1, 2]}, "a": 1}, None),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ("a.c", "2", "3")),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 4}]}, ("a[1].b", "2", "4")),
        ({"a": [1]}, {"a": [1, 2]}, ("a", "[1]", "[1, 2]")),
        ({"a": 1}, {"a": 1, "b": 2}, ("b", "no such field", "2")),
        ({"a": 1, "b": 2}, {"a": 1}, ("b", "2", "no such field")),
        ({"a": None}, {"a": {"b": 1}}, ("a", "null", '{"b": 1}')),
        ({"a": True}, {"a": 1}, ("a", "true", "1")),
    ],
)
def test_the_first_difference_has_a_dotted_path_and_both_values(theirs, ours, difference):
    assert identity.first_difference(theirs, ours) == difference


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from comarl.runs.checkpoint import Checkpoints, load

def state(number):
    return {"a": np.full(300_000, number), "b": np.full((7, 5), number)}

checkpoints, config = Checkpoints(Path(sys.argv[1])), {"kind": "Run"}
random.seed(int(sys.argv[2]))
acknowledged = 0
while_writing = 0
for _ in range(30):
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        for number in range(acknowledged + 1, 10**6):
            checkpoints.save(number, state(number), {"config": config, "round": number})
            os.write(send, number.to_bytes(8, "little"))
    os.close(send)
    time.sleep(random.uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while word := os.read(receive, 8):
        acknowledged = int.from_bytes(word, "little")
    os.close(receive)
    while_writing += any(checkpoints.folder.glob("*.partial"))
    problems = []
    found = checkpoints.newest(state(0), config, tell=problems.append)
    if found is None:
        assert acknowledged == 0
        continue
    loaded, header = found
    assert not problems, problems
    assert header["round"] in (acknowledged, acknowledged + 1), (header, acknowledged)
    for number in checkpoints.numbers():  # the older one too is whole
        older, _ = load(checkpoints.path(number), state(0))
        assert all((older[name] == number).all() for name in older)
    acknowledged = header["round"]
print(acknowledged, while_writing)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_checkpoints(tmp_path):
    """The child is forked from a process that has imported everything, so that thirty kills take
    two seconds."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "checkpoints"), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    saved_until, while_writing = map(int, done.stdout.split())
    assert saved_until > 10 and while_writing > 3, "the kills did not come while it was writing"
