"""Files of teams: what is written, and what becomes of files that nobody should trust."""

import json
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
import safetensors.numpy

from comarl.teams.export import export, is_description, read
from comarl.teams.team import Team, mixed
from tests.teams.small import config_of, run_of, trained_of


def team_of(name, **more):
    run = run_of(name)
    return Team.of_run(run, config_of(run), trained_of(run), 0, **more)


@pytest.fixture(scope="module")
def team():
    return team_of("qmix")


@pytest.fixture(scope="module")
def content(team, tmp_path_factory):
    return export(team, tmp_path_factory.mktemp("team") / "team.safetensors").read_bytes()


def about(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["comarl"])


def test_a_file_says_all_that_is_needed_and_reads_anywhere(team, content, tmp_path):
    path = export(team, tmp_path / "new" / "mine.safetensors")
    beside = json.loads((tmp_path / "new" / "mine.json").read_text())
    assert path.read_bytes() == content and beside == about(content)
    assert beside["algorithm_name"] == "qmix" and beside["algorithm"]["hidden"] == 4
    assert beside["spec"]["num_agents"] == 2 and beside["clock"] == {"env_steps": 0, "updates": 0}
    arrays = safetensors.numpy.load_file(path)  # by a reader that is not ours
    assert set(arrays) == {name for name, _, _ in team.acting.form.kept}
    again = read(path)
    assert again.about == team.about and again.algorithm == team.algorithm
    assert repr(again) == repr(team) and again.acting.form == team.acting.form
    assert export(again, path).read_bytes() == content  # over its own description


@pytest.mark.parametrize("name", ["qmix", "maven-learned", "vm3-ac-shared"])
def test_a_program_does_what_the_team_does(name, tmp_path):
    pytest.importorskip("flatbuffers")
    team = team_of(name)
    path = export(team, tmp_path / "team.safetensors", stablehlo=True)
    program = jax.export.deserialize(bytearray(path.with_suffix(".stablehlo").read_bytes()))
    interface = about(path.read_bytes())["stablehlo"]
    arguments: dict[str, Any] = {
        entry["name"]: np.zeros(entry["shape"], entry["dtype"]) for entry in interface["arguments"]
    }
    assert [(aval.shape, aval.dtype) for aval in program.in_avals] == [
        (array.shape, array.dtype) for array in arguments.values()
    ]
    random, key, spec = np.random.default_rng(0), jax.random.key(4), team.spec
    team.reset(key)
    arguments["key"] = np.asarray(jax.random.key_data(key))
    if "available" in arguments:
        arguments["available"] |= True
    for time in range(4):
        arguments["time"] = np.int32(time)
        arguments["obs"] = random.normal(size=(spec.num_agents, spec.obs_size)).astype(np.float32)
        if "state" in arguments:
            arguments["state"] = random.normal(size=spec.state_size).astype(np.float32)
        results = jax.jit(program.call)(*arguments.values())
        for entry, result in zip(interface["results"], results, strict=True):
            arguments[entry["name"]] = np.asarray(result)
        action = arguments.pop("action")
        expected = team.act(arguments["obs"], arguments.get("available"), arguments.get("state"))
        np.testing.assert_allclose(action, expected, atol=1e-6)
    assert read(path).algorithm == team.algorithm


def test_what_cannot_be_written_is_said_at_once(team, tmp_path):
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        export(team, tmp_path / "team.npz")
    with pytest.raises(ValueError, match="mixed team"):
        export(mixed([team, team]), tmp_path / "team.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="choose another name"):
        export(team, tmp_path / "config.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert not is_description(tmp_path / "none.json")


def written(path, content, change=lambda about: None, arrays=None):
    """A file whose description was changed by whoever gives it away."""
    described = about(content)
    change(described)
    text = described if isinstance(described, str) else json.dumps(described)
    arrays = safetensors.numpy.load(content) if arrays is None else arrays
    path.write_bytes(safetensors.numpy.save(arrays, {"comarl": text}))
    return path


def put(*keys, value):
    def change(described):
        for key in keys[:-1]:
            described = described[key]
        described[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("spec"), "has no spec"),
        (put("format", value=2), "format=2 is not one"),
        (put("more", value=1), "unknown field 'more'"),
        (put("seed", value=True), "seed must be of the type int"),
        (put("seed", value=-1), "seed=-1 must be between"),
        (put("team", value=1), "team=1 must be between 0 and 0"),
        (put("which", value="mine"), "which='mine' must be"),
        (put("clock", value={}), "must have env_steps and updates"),
        (put("clock", "updates", value="x"), "updates='x' must be"),
        (put("algorithm_name", value="none"), "does not exist"),
        (put("algorithm_name", value="antigravity:Flight"), "only if you name it"),
        (put("algorithm_name", value="matd3"), "algorithm"),
        (put("algorithm", "kind", value="Matd3"), "algorithm.kind='Matd3'"),
        (put("algorithm", "hidden", value=-3), "algorithm.hidden of its description"),
        (put("algorithm", "hidden", value=2**31 - 1), "shape"),
        (put("spec", "num_agents", value=10**9), "num_agents=1000000000 must be between"),
        (put("spec", "obs_size", value=10**9), "obs_size=1000000000 must be between"),
        (put("spec", "horizon", value=2**31 - 1), "horizon=2147483647 must be between"),
        (put("spec", "obs_sizes", value=[1]), "one size for each agent"),
        (put("spec", "action_sizes", value=[9, 9]), "must be 3 at most"),
        (put("spec", "obs_from_state", value=[[0], [7]]), "indices of the state"),
        (put("spec", "discrete", value=False), "cannot choose continuous"),
        (put("spec", "other", value=1), "spec has an unknown field"),
        (lambda d: d["spec"].pop("horizon"), "not all sizes"),
        (put("sha256", value="0"), "the file is damaged"),
        (put("algorithm_name", value="\x1b[31m"), "does not exist"),
    ],
)
def test_a_description_that_was_tampered_with_ends_in_one_sentence(
    change, message, content, tmp_path
):
    path = written(tmp_path / "team.safetensors", content, change)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and "\x1b" not in text
    assert "config.json" not in text


def test_arrays_that_are_not_the_teams_end_in_one_sentence(content, tmp_path):
    arrays = safetensors.numpy.load(content)
    first = min(arrays)
    path = tmp_path / "team.safetensors"
    fewer = {name: array for name, array in arrays.items() if name != first}
    for wrong, message in [
        (fewer, "has no array"),
        (arrays | {"more": arrays[first]}, "has an array that its team has not: 'more'"),
        (arrays | {first: arrays[first][..., :1]}, "has the shape"),
        (arrays | {first: arrays[first] + 1}, "damaged"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(written(path, content, arrays=wrong))


def test_a_damaged_file_ends_in_one_sentence(content, tmp_path):
    """Cut anywhere, or with any byte of it changed."""
    path = tmp_path / "team.safetensors"
    random = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    damaged = [b"", content[:5], content[: header - 3], content[:-1], content + b"x", b"\xff" * 99]
    for place in [*range(0, 9), *random.integers(8, len(content), 40).tolist(), header, header + 1]:
        damaged.append(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
    refused = 0
    for one in damaged:
        path.write_bytes(one)
        try:
            read(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
    assert refused >= len(damaged) - 12  # letters of task_name and the like may be others
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="no plain file"):
        read(tmp_path)
