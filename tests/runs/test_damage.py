"""No damaged file is taken for a good one, and none ends in anything but a sentence."""

import errno
import json
import os
import random
import time
import warnings
import zipfile

import numpy as np
import pytest

from comarl.runs import checkpoint, records
from comarl.runs.checkpoint import Checkpoints, DamagedCheckpoint, OtherConfiguration, load
from comarl.training.log import check_header

LIKE = {"w": np.zeros((40, 40)), "n": np.zeros(3, np.int32)}
CONFIG = {
    "algorithm_name": "qmix",
    "algorithm": {"kind": "Qmix", "gamma": 0.99},
    "seeds": 2,
    "first_seed": 0,
}


def state(number):
    return {"w": np.full((40, 40), float(number)), "n": np.full(3, number, np.int32)}


@pytest.fixture
def kept(tmp_path):
    """Two good checkpoints, of rounds 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for number in (1, 2):
        checkpoints.save(number, state(number), {"config": CONFIG, "round": number})
    return checkpoints


def recovered(checkpoints) -> int:
    """The round of the state that is found, which must be whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, header = checkpoints.newest(LIKE, CONFIG)
    number = header["round"]
    for name, value in state(number).items():
        np.testing.assert_array_equal(found[name], value)
    return number


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def fuzz(kept, variants: int):
    chance, newest = random.Random(0), kept.path(2)
    good = newest.read_bytes()
    rounds = set()
    for _ in range(variants):
        kind = chance.choice(["flip", "flips", "cut", "noise"])
        if kind == "flip":
            content = flipped(good, chance.randrange(8 * len(good)))
        elif kind == "flips":
            content = good
            for _ in range(5):
                content = flipped(content, chance.randrange(8 * len(good)))
        elif kind == "cut":
            content = good[: chance.randrange(len(good))]
        else:
            start = chance.randrange(len(good))
            content = good[:start] + chance.randbytes(20) + good[start + 20 :]
        newest.write_bytes(content)
        rounds.add(recovered(kept))
    assert rounds <= {1, 2} and 1 in rounds


def test_whatever_happens_to_the_newest_checkpoint_a_whole_state_is_found(kept):
    fuzz(kept, 300)


@pytest.mark.fuzz
def test_whatever_happens_to_the_newest_checkpoint_a_whole_state_is_found_at_length(kept):
    fuzz(kept, 30_000)


def test_every_bit_of_the_headers_of_arrays_may_flip(kept):
    newest = kept.path(2)
    good = newest.read_bytes()
    begin = good.index(b"\x93NUMPY")
    for bit in range(8 * begin, 8 * (begin + 128)):
        newest.write_bytes(flipped(good, bit))
        assert recovered(kept) == 1


@pytest.mark.parametrize(
    "kind", ["directory", "loop", "dangling", "pipe", "zeros", "other round", "empty"]
)
def test_a_newest_checkpoint_that_is_no_such_file_is_passed_over_at_once(kind, kept):
    newest = kept.path(3)
    if kind == "directory":
        newest.mkdir()
    elif kind == "loop":
        newest.symlink_to(newest)
    elif kind == "dangling":
        newest.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(newest)
    elif kind == "zeros":
        newest.symlink_to("/dev/zero")
    elif kind == "other round":
        newest.write_bytes(kept.path(1).read_bytes())
    else:
        newest.touch()
    began = time.monotonic()
    assert recovered(kept) == 2
    assert time.monotonic() - began < 5
    # The run goes on and saves the same round
    kept.save(3, state(3), {"config": CONFIG, "round": 3})
    assert recovered(kept) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": 4}, "seeds: the checkpoint has 4, this run has 2"),
        ({"first_seed": 9}, "first_seed: the checkpoint has 9, this run has 0"),
        (
            {"algorithm_name": "vdn"},
            'algorithm_name: the checkpoint has "vdn", this run has "qmix"',
        ),
        ({"algorithm": {"kind": "Qmix", "gamma": 0.9}}, "algorithm.gamma: the checkpoint has 0.9"),
        ({"algorithm": {}}, "algorithm.kind: the checkpoint has no such field"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(change, told, kept, tmp_path):
    others = Checkpoints(tmp_path / "others")
    others.save(3, state(3), {"config": CONFIG | change, "round": 3})
    kept.path(3).write_bytes(others.path(3).read_bytes())
    with pytest.raises(OtherConfiguration, match=f"^{told}"):
        kept.newest(LIKE, CONFIG)
    assert kept.numbers() == [3, 2, 1], "nothing is deleted"


HEADER = {
    "config": CONFIG,
    "versions": {"jax": "0.10.0"},
    "code": {"comarl": "0123456789ab"},
    "round": 2,
    "wall_time": 1.5,
    "worker_restarts": 0,
    "records": 0,
    "means": [{"loss": [1.5, 2]}, {}],
    "unevaluated": [10, 20],
}
"""all that a run resumes from"""
LIES = ("", "3", None, True, -1, 0.5, 10**30, float("nan"), [], [-1], [["x"]], [{}], {}, {"a": 1})


@pytest.mark.parametrize("name", HEADER)
def test_a_header_that_no_run_has_written_is_damage(name, kept):
    lies = [lie for lie in LIES if not is_possible(name, lie)]
    assert lies
    for lie in lies:
        kept.save(2, state(2), HEADER | {"round": 2})
        checkpoint.save(kept.path(2), state(2), json_of(HEADER | {name: lie}))
        with warnings.catch_warnings(action="ignore"):
            _, header = kept.newest(LIKE, CONFIG, check=check_header_or_first)
        assert header["round"] == 1, lie


def is_possible(name, lie):
    """What a run may have written after all."""
    if name == "wall_time":
        return lie in (0.5, 10**30) and lie is not True
    if name == "records":
        return lie == 10**30  # which is found out when the records are cut
    return name in ("versions", "code", "config") and lie in ({}, {"a": 1})


def json_of(header):
    """The same, with what JSON has no word for as text."""
    return {name: "NaN" if value != value else value for name, value in header.items()}


def check_header_or_first(header):
    if header["round"] != 1:  # the older one has no more than its round
        check_header(header)


def test_a_checkpoint_that_may_not_be_read_is_passed_over(kept, monkeypatch):
    opened = os.open

    def refuse(path, *more, **options):
        if str(path) == str(kept.path(2)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert recovered(kept) == 1


def test_if_all_are_damaged_nothing_is_deleted(kept):
    for number in (1, 2):
        kept.path(number).write_bytes(b"no zip")
    with pytest.raises(DamagedCheckpoint, match="no checkpoint in"):
        kept.newest(LIKE, CONFIG)
    assert kept.numbers() == [2, 1]


@pytest.mark.parametrize("size", [1 << 26, 10])
def test_a_small_file_that_inflates_to_a_large_one_is_refused_before_it_is_read(size, tmp_path):
    path = tmp_path / "checkpoint-00000001.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", b"{}" + b" " * size)
    began = time.monotonic()
    with pytest.raises(DamagedCheckpoint, match="compressed or larger"):
        load(path, LIKE)
    assert time.monotonic() - began < 1


LINE = {"seed": 0, "env_steps": 10, "updates": 1, "marl_team": [1.0, None], "training": {"a": None}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"env_steps": 10}, "env_steps 10 of seed 0 must be more than 10"),
        ({"env_steps": 9}, "env_steps 9 of seed 0 must be more than 10"),
        ({"env_steps": -1}, "env_steps -1 must be a whole number from 0"),
        ({"env_steps": 20.5}, "env_steps 20.5 must be"),
        ({"env_steps": True}, "env_steps True must be"),
        ({"seed": "0"}, "seed '0' must be a whole number"),
        ({"seed": None}, "seed None must be"),
        ({"updates": "many"}, "updates 'many' must be"),
        ({"marl_team": [float("nan")]}, "NaN is no JSON"),
        ({"marl_team": [float("inf")]}, "Infinity is no JSON"),
        ({"marl_team": ["1"]}, "marl_team .* must be a list of numbers"),
        ({"marl_team": 1.0}, "marl_team 1.0 must be a list"),
        ({"best_team_won": {}}, "best_team_won {} must be a list"),
        ({"training": []}, r"training \[\] must be an object"),
        ({"training": {"a": "x"}}, "training .* must be an object of numbers"),
    ],
)
def test_a_line_that_no_run_has_written_is_named_by_its_number(change, told, tmp_path):
    wrong = {**LINE, "env_steps": 20, **change}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(LINE)}\n{json.dumps(wrong)}\n")
    with pytest.raises(ValueError, match=f"metrics.jsonl, line 2: {told}"):
        records.read(tmp_path)


def test_nulls_and_another_seeds_smaller_steps_are_legal(tmp_path):
    lines = [LINE, {**LINE, "seed": 1, "env_steps": 5}, {**LINE, "env_steps": 20}]
    records.Records(tmp_path).append(lines)
    assert records.read(tmp_path) == lines


def fuzz_records(folder, variants: int):
    chance = random.Random(1)
    good = "".join(json.dumps({**LINE, "env_steps": 10 * i}) + "\n" for i in range(1, 5)).encode()
    for _ in range(variants):
        content = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.choice(b'-0[]{}":,eNa\n\xff 9')
        (folder / "metrics.jsonl").write_bytes(content)
        try:
            lines = records.read(folder)
        except ValueError as error:
            assert "metrics.jsonl, line " in str(error)
            continue
        steps = [line["env_steps"] for line in lines if line["seed"] == 0]
        assert steps == sorted(set(steps))


def test_damaged_records_are_read_as_what_they_say_or_named(tmp_path):
    fuzz_records(tmp_path, 500)


@pytest.mark.fuzz
def test_damaged_records_are_read_as_what_they_say_or_named_at_length(tmp_path):
    fuzz_records(tmp_path, 20_000)


def test_records_and_settings_that_are_no_plain_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is no plain file"):
        records.read(tmp_path)
    with pytest.raises(ValueError, match="is no plain file"):
        records.read_config(tmp_path)


def test_no_checkpoint_is_promised_where_there_is_none(kept, tmp_path):
    assert kept.kept() == f"The same command resumes from {kept.path(2)}."
    none = Checkpoints(tmp_path / "new")
    assert none.kept().startswith("The run has no checkpoint yet: the same command starts it from")


def test_a_zip_of_very_many_members_is_damage_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint-00000001.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(checkpoint.MOST_MEMBERS + 1):
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", lambda *_: pytest.fail("it was read"))
    with pytest.raises(checkpoint.DamagedCheckpoint, match="more than 20000 members"):
        checkpoint.read_header(path)
