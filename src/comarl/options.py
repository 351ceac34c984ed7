"""Options of the command line: which there are, and what to say of one that there is not."""

import argparse
import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from comarl.validation import MOST_SEEDS, UnknownName, WrongSetting

ABBREVIATIONS = {
    "lr": "learning-rate",
    "bs": "batch-size",
    "batch": "batch-size",
    "eps": "epsilon",
    "buffer-size": "capacity",
    "hidden-size": "hidden",
    "num-envs": "parallel-envs",
    "lambda": "td-lambda",
}
"""what other programs call an option -> its name here"""


def seeds_in(arguments: Sequence[str]) -> int:
    """The number of seeds asked for, which is needed before anything is loaded that could parse
    the other options."""
    given = values_of(arguments, "--seeds")
    # What is no number of seeds is refused later, with the other options
    few = bool(given) and given[-1].isdecimal() and len(given[-1]) <= len(str(MOST_SEEDS))
    return min(max(1, int(given[-1])), MOST_SEEDS) if few else 1


def values_of(arguments: Sequence[str], option: str) -> list[str]:
    """The values that an option is given, wherever it stands.

    >>> values_of(["run", "--import", "a", "b", "--episodes", "2", "--import=c"], "--import")
    ['a', 'b', 'c']
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, dest="given", nargs="*", action="append", default=[])
    return [value for values in parser.parse_known_args(arguments)[0].given for value in values]


def check_options(arguments: Sequence[str], settings: Any, fixed: Sequence[str], prog: str) -> None:
    """Raises UnknownName for the first option that `settings` have not, with the nearest ones; and
    WrongSetting for one of the fields `fixed` of the task, which its name decides."""
    known = [*options(settings), "--help"]
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if not option.startswith("--") or option.startswith("--tyro-"):
            continue
        field = option.removeprefix("--task.").replace("-", "_")
        if option.startswith("--task.") and field in fixed:
            raise WrongSetting(
                f"{option}: the task's name already says "
                f"{vars(settings.task).get(field)!r}; give another name",
                field,
            )
        if option not in known:
            near = nearest(option, known)
            meant = f"; did you mean {' or '.join(near)}? " if near else ". "
            raise UnknownName(
                f"option {option} does not exist{meant}`{prog} --help` shows all options."
            )


def options(settings: Any, prefix: str = "--") -> Iterator[str]:
    """Every option that sets a field of settings, or of settings inside them.

    >>> from comarl.ops.learner import Adam
    >>> list(options(Adam()))
    ['--learning-rate', '--max-grad-norm', '--epsilon']
    """
    for field in dataclasses.fields(settings):
        name, value = field.name.rstrip("_").replace("_", "-"), vars(settings)[field.name]
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{prefix}{name}.")
            continue
        yield prefix + name
        if value is None or isinstance(value, bool):
            yield f"{prefix}no-{name}"


def nearest(option: str, known: Sequence[str]) -> list[str]:
    """Up to three options that may be meant: those of the same last word, or else those that are
    spelt alike.

    >>> nearest("--algorithm.lr", ["--algorithm.trace", "--algorithm.optimiser.learning-rate"])
    ['--algorithm.optimiser.learning-rate']
    """
    word = option.rpartition(".")[2].removeprefix("--")
    word = ABBREVIATIONS.get(word, word)
    ends = [name for name in known if name.rpartition(".")[2].removeprefix("--") == word]
    return ends[:3] or difflib.get_close_matches(option, known, n=3, cutoff=0.7)


def with_option(error: WrongSetting, arguments: Sequence[str]) -> str:
    """The sentence of a wrong setting, with the option that gave it in front."""
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    field = error.field.replace("_", "-")
    last = lambda option: option.rpartition(".")[2].removeprefix("--").replace("_", "-")
    found = [option for option in given if last(option) == field]
    named = len(found) == 1 and found[0] not in str(error)
    return f"{found[0]}: {error}" if named else str(error)
