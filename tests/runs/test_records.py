import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.runs import records
from comarl.runs.identity import canonical, fingerprint, kind_of, to_config
from comarl.runs.records import Records, read


@dataclass(frozen=True)
class Inner:
    beta: float = 0.1
    hidden: tuple[int, ...] = (64, 64)
    clip: float | None = None
    activation: Callable = jax.nn.relu


@dataclass(frozen=True)
class Outer:
    algorithm: Inner = Inner()
    task: str = "matrix/climbing"
    seeds: int = 3
    evolve: bool = True


LINE: dict[str, Any] = {
    "seed": 0,
    "env_steps": 100,
    "updates": 4,
    "marl_team": [1.5, 2.0],
    "training": {"critic_loss": 0.25},
}


def test_a_nested_dataclass_becomes_plain_json_with_its_class_as_kind():
    assert to_config(Outer()) == {
        "kind": f"{__name__}:Outer",
        "algorithm": {
            "kind": f"{__name__}:Inner",
            "beta": 0.1,
            "hidden": [64, 64],
            "clip": None,
            "activation": f"{jax.nn.relu.__module__}.relu",
        },
        "task": "matrix/climbing",
        "seeds": 3,
        "evolve": True,
    }
    assert json.loads(canonical(to_config(Outer()))) == to_config(Outer())


def test_a_whole_number_in_a_float_field_is_the_same_setting():
    assert fingerprint(to_config(Inner(beta=0, clip=1))) == fingerprint(
        to_config(Inner(beta=0.0, clip=1.0))
    )
    assert canonical(to_config(Inner(clip=float("inf")))).count('"inf"') == 1


@pytest.mark.parametrize("value", [lambda x: x, np.zeros(3), object()])
def test_a_setting_without_a_lasting_name_is_refused(value):
    with pytest.raises(TypeError, match="plain data"):
        to_config({"setting": value})


def test_what_changes_no_result_is_no_setting():
    @dataclass(frozen=True)
    class Threaded:
        size: int = 1
        threads: int = field(default=2, compare=False)

    assert (
        to_config(Threaded())
        == to_config(Threaded(threads=5))
        == {"kind": kind_of(Threaded), "size": 1}
    )


def test_a_field_called_kind_is_refused():
    @dataclass(frozen=True)
    class Bad:
        kind: str = "a"

    with pytest.raises(ValueError, match="kind"):
        to_config(Bad())


def test_a_fingerprint_is_the_same_in_every_process_and_for_every_order_of_fields():
    assert fingerprint({"kind": "Run", "seeds": 3, "beta": 0.1}) == "72449ff18a"
    assert fingerprint({"beta": 0.1, "seeds": 3, "kind": "Run"}) == "72449ff18a"


def test_a_fingerprint_differs_for_every_change_of_a_setting():
    runs = [
        Outer(),
        Outer(seeds=4),
        Outer(evolve=False),
        Outer(task="matrix/penalty"),
        *(
            Outer(algorithm=replace(Inner(), **change))
            for change in ({"beta": 0.1000001}, {"hidden": (64,)})
        ),
        Outer(algorithm=Inner(activation=jax.nn.tanh)),
    ]
    assert len({fingerprint(to_config(run)) for run in runs}) == len(runs)


def test_lines_come_back_as_they_were_written(tmp_path):
    (tmp_path / "run").mkdir()
    file = Records(tmp_path / "run")
    assert file.position() == 0 and read(tmp_path / "run") == []
    file.append([LINE, {**LINE, "seed": 1}])
    file.append([{**LINE, "seed": 2}])
    assert read(tmp_path / "run") == [LINE, {**LINE, "seed": 1}, {**LINE, "seed": 2}]
    assert file.position() == (tmp_path / "run" / "metrics.jsonl").stat().st_size


def test_arrays_become_numbers_and_what_is_not_finite_becomes_null(tmp_path):
    line = {
        "seed": np.int64(1),
        "marl_team": jnp.array([1.5, jnp.nan]),
        "training": {
            "a": float("inf"),
            "b": jnp.bfloat16(0.5),
            "c": np.float32(2),
            "d": jnp.bool_(True),
        },
    }
    Records(tmp_path).append([line])

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "seed": 1,
        "marl_team": [1.5, None],
        "training": {"a": None, "b": 0.5, "c": 2.0, "d": True},
    }


def test_a_half_written_last_line_is_dropped_on_resuming_and_never_read(tmp_path):
    file, path = Records(tmp_path), tmp_path / "metrics.jsonl"
    file.append([LINE])
    position = file.position()
    file.append([{**LINE, "seed": 1}])
    whole = path.read_bytes()
    for length in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:length])
        assert read(tmp_path) == [LINE]
        file.truncate(position)
        file.append([{**LINE, "seed": 9}])
        assert read(tmp_path) == [LINE, {**LINE, "seed": 9}]


def test_a_resumed_file_is_the_file_that_never_stopped(tmp_path):
    file = Records(tmp_path)
    file.append([LINE])
    position = file.position()
    file.append([{**LINE, "seed": 1}])
    never_stopped = file.path.read_bytes()
    file.append([{**LINE, "seed": 2}])
    resumed = Records(tmp_path)
    resumed.truncate(position)
    assert read(tmp_path) == [LINE]
    resumed.append([{**LINE, "seed": 1}])
    assert resumed.path.read_bytes() == never_stopped


def test_a_position_that_the_file_does_not_have_is_refused_and_nothing_is_lost(tmp_path):
    file = Records(tmp_path)
    file.append([LINE, {**LINE, "seed": 1}])
    before = file.path.read_bytes()
    for position in (len(before) + 1, 5, -1):
        with pytest.raises(ValueError, match=r"metrics\.jsonl has .* Restore the file, or delete"):
            file.truncate(position)
    assert file.path.read_bytes() == before


def test_a_line_that_is_not_json_is_named_by_its_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{json.dumps(LINE)}\n{{"seed":\n{{"seed": 2}}\n')
    with pytest.raises(ValueError, match="line 2"):
        read(tmp_path)


def test_the_folder_says_what_ran_and_with_what(tmp_path):
    config = to_config(Outer())
    records.write_about(tmp_path / "run", config)
    assert records.read_config(tmp_path / "run") == config
    assert (
        (tmp_path / "run" / "config.json")
        .read_text()
        .startswith('{\n  "kind": "test_records:Outer"')
    )
    (about,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert about["versions"]["jax"] == jax.__version__ and about["versions"]["python"].startswith(
        "3."
    )
    assert (
        about["cores"] >= 1
        and about["memory_gib"] > 0
        and about["cpu"]
        and about["platform"]
        and about["command"]
    )
    assert len(about["devices"]) == len(jax.devices())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json",
        "environment.json",
    }


def test_a_failed_write_leaves_the_old_json(tmp_path):
    path = tmp_path / "config.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        records.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["config.json"]
