"""Options of the command line: which there are, what they set, and what to say of one that there is
not."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tyro

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

SAID = {
    r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)": (
        r"\1: \2 is no whole number"
    ),
    r"Error parsing (\S+): could not convert string to float: (.*)": r"\1: \2 is no number",
    r"Error parsing (.*)": r"\1",
    r"Missing value for argument '[(']*([^\s']+).*": r"\1: its value is missing",
    r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)\.": (
        r"\2: \1 is no choice; it can be \3"
    ),
    r"Unrecognized options: (.*)": r"\1: nothing of that name or value is expected here",
}
"""what tyro says -> the same as a sentence of comarl; what is not here is shown as it is"""

LONGEST = 400
"""characters of such a sentence; what is longer came from the command line itself"""


class UsageError(ValueError):
    """A command line that cannot be meant."""


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


@dataclasses.dataclass(frozen=True)
class Unnamed:
    """An algorithm or a task that no name has said yet, and so without options."""


def check_names(arguments: Sequence[str], wanted: str, complaint: str, kind: Any) -> None:
    """Raises UsageError with the complaint unless a command got the names that it needs in front of
    its options; `wanted` is the command with words for them, such as `train ALGORITHM TASK`.

    Asked for help without them, it shows the options of `kind`, which every name has, and ends the
    process.
    """
    command, *words = wanted.split()
    names = arguments[: len(words)]
    if len(names) == len(words) and not any(name.startswith("-") for name in names):
        return
    if not {"-h", "--help"} & set(arguments):
        raise UsageError(f"{complaint}; `comarl {command} --help` shows all options.")
    own = [field.name for field in dataclasses.fields(kind) if field.name in ("algorithm", "task")]
    if own:
        parts = " and of the ".join(own)
        print(f"`comarl {wanted} --help` shows the options of the {parts}, too.\n")
    of_names = kind[(Unnamed,) * len(own)] if own else kind
    parsed(of_names, kind(*[Unnamed() for _ in own]), ["--help"], f"comarl {wanted}")


def parsed(
    kind: Any, usual: Any, arguments: Sequence[str], prog: str, fixed: Collection[str] = ()
) -> Any:
    """Settings of a `kind`: the usual ones with what the options set.

    Raises UsageError, or what `check_options` and the settings themselves raise. Asked for help,
    tyro shows it and ends the process.
    """
    check_options(arguments, usual, fixed, prog)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=prog,
                args=list(arguments),
                default=usual,
                # A field of several kinds, such as an optimiser, keeps its kind
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # Settings that refused a value have said so better than tyro repeats it
        cause: BaseException | None = stop
        while (cause := cause.__cause__ or cause.__context__) is not None:
            if isinstance(cause, WrongSetting | UnknownName):
                raise cause from None
        raise UsageError(
            f"{unboxed(said.getvalue())}; `{prog} --help` shows all options."
        ) from None


def unboxed(box: str) -> str:
    """The sentence in a box that tyro draws around an error: what stands between its title and the
    next rule. On a terminal without Unicode, there is a rule under the title, too."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │") for line in plain.splitlines() if line.strip()][1:]
    is_rule = lambda line: set(line) <= set("─-╰╯")
    after_title = itertools.dropwhile(is_rule, lines)
    text = " ".join(itertools.takewhile(lambda line: not is_rule(line), after_title))
    for pattern, sentence in SAID.items():
        if match := re.fullmatch(pattern, text):
            text = match.expand(sentence)
            break
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check_options(
    arguments: Sequence[str], settings: Any, fixed: Collection[str], prog: str
) -> None:
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
