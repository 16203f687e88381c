"""The command line: a verb, and the function it calls.

Only the verb's own module is imported, so ``sddlm --help`` does not import torch.
Whatever a user can get wrong ends as one line: what was given, what is allowed, what to type.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sddlm.errors import ConfigError, did_you_mean, kinds, one_line, visible
from sddlm.verbs import READS_RECIPES, USAGE, VERBS

if TYPE_CHECKING:
    from sddlm.options import Layer

#: most characters of an error's line: an option's value may be a file's whole text
_LONGEST = 1000


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        exit code: 0, 2 for a wrong choice of the user, 1 for a failure, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, *rest = arguments or ["--help"]
    try:
        verb, rest = _subcommand(verb, rest)
        code = _run(verb, rest)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(verb, error, 2)
    except KeyboardInterrupt as stop:
        return _fail(verb, stop, 130) if str(stop) else 130
    except BrokenPipeError:  # the reader of our output has gone; Python's own flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, FloatingPointError) as error:
        return _fail(verb, error, 1)
    except SystemExit as end:  # after a verb's --help
        return end.code if isinstance(end.code, int) else 0
    except BaseException as error:  # also a panic of a library in Rust, which is no Exception
        from sddlm.cli_errors import saved_traceback

        return _fail(verb, error, 1, saved_traceback(error))


def _subcommand(verb: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The verb with the subcommand that is typed, and what follows it."""
    there = [name.removeprefix(f"{verb} ") for name in VERBS if name.startswith(f"{verb} ")]
    if not there:
        return verb, arguments
    word = arguments[0] if arguments else ""
    if word in there:
        return f"{verb} {word}", arguments[1:]
    if not Path(word).exists() and (meant := did_you_mean(word, there)):
        raise ConfigError(f"no subcommand {word}, only {', '.join(there)}{meant}")
    return verb, arguments


def _entry(verb: str) -> tuple[str, str, bool, str]:
    """The row of a verb, or of the subcommand that it means; texts are empty if there is none."""
    meant = (entry for name, entry in VERBS.items() if name.startswith(f"{verb} "))
    return VERBS.get(verb) or next(meant, ("", "", False, ""))


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(USAGE.format(verbs="\n".join(f"  {v:<{width}} {r[3]}" for v, r in VERBS.items())))
        return 0
    if verb == "--version":
        print(importlib.import_module("sddlm").__version__)
        return 0
    if verb == "--completion":
        from sddlm.completion import script

        print(script(), end="")
        return 0
    if not _entry(verb)[0]:
        raise ConfigError(
            f"there is no verb {verb}, only {', '.join(VERBS)}{did_you_mean(verb, VERBS)}"
        )
    function, chosen = _parse(verb, arguments)
    if (verb == "sample" or verb.startswith("eval")) and chosen["out"] is None:
        chosen["out"] = _default_out(verb, chosen)
    with _messages(verb):
        result = function(**chosen)
    _show(verb, result, chosen)
    return 0


def _default_out(verb: str, chosen: dict[str, Any]) -> str:
    """File in the directory of a model; in the working directory for one of the package."""
    known = {"sample": "samples.jsonl", "eval": "evaluation.json", "eval report": "evaluation.json"}
    name = known.get(verb) or f"{verb.split()[1].replace('-', '_')}.json"
    place = Path(chosen["model_dir" if verb == "sample" else "model"])
    return str(place / name) if place.is_dir() else name


def _show(verb: str, result: Any, chosen: dict[str, Any]) -> None:
    """Print what a verb returned, in the first process of a run."""
    first = _is_first()
    if verb.startswith("eval") and first:
        if styled := sys.stdout.isatty():
            from sddlm.progress import PlainConsole

            PlainConsole().print(result)
        _write(f"{'' if styled else result}written to {chosen['out']}\n")
    if verb == "plan":
        _write(str(result))
    if verb == "sample" and first:
        _write("\n\n".join(f"--- {i + 1} ---\n{text}" for i, text in enumerate(result)) + "\n")
    if verb == "correct" and chosen.get("out") is None:
        _write(result.text)
    if verb in ("train", "distill") and first:
        each = "each round is a run" if verb == "distill" else "metrics, curves and previews"
        run = shlex.quote(str(result))
        _write(f"{each} in {result}, the model in {result / 'model'}\n")
        _write(f"next:  sddlm sample {run}\n       sddlm eval {run}\n")


def _write(text: str) -> None:
    """Write to standard output: the exact text into a file or a pipe, what is safe on a terminal.

    Characters that the encoding of the output lacks become escapes.
    """
    if sys.stdout.isatty():
        text = visible(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


@contextmanager
def _messages(verb: str) -> Iterator[None]:
    """What the library reports goes to stderr; what other libraries report does not."""
    logger, handler = logging.getLogger("sddlm"), logging.StreamHandler()
    handler.setFormatter(_Visible(verb))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Visible(logging.Formatter):
    """Reports name arguments, and may quote file names and generated text."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self.verb = verb

    def format(self, record: logging.LogRecord) -> str:
        """The message with flags, safe on a terminal."""
        return visible(_with_flags(super().format(record), self.verb))


def _with_flags(message: str, verb: str) -> str:
    """The message with the verb's flags in the place of arguments in backquotes."""
    module, name, positional, _ = _entry(verb)
    if "`" not in message or module not in sys.modules:
        return message
    from sddlm.cli_errors import with_flags
    from sddlm.options import option_types, required

    function = getattr(sys.modules[module], name)
    options = option_types(function).keys() - (required(function) if positional else ())
    return with_flags(message, options)


def _fail(verb: str, error: BaseException, code: int, traceback: str = "") -> int:
    """Print one line; what all processes of a run come to, by the first one alone."""
    if code != 1 and not _is_first():
        return code
    name = f"sddlm {verb}" if _entry(verb)[0] else "sddlm"
    line = visible(_with_flags(" ".join(str(error).split()), verb)) or type(error).__name__
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    print(f"{name}: {line}{traceback}", file=sys.stderr)
    return code


def _is_first() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _parser(verb: str, imports: Sequence[str] = ()) -> tuple[Callable[..., Any], Any]:
    """The verb's function, and the parser of its options.

    A value may name classes of this package, and of ``imports``, which are imported already.
    """
    from jsonargparse import set_parsing_settings

    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        import_path_denylist=["*"],
        import_path_allowlist=["sddlm", *imports],
    )
    function, parser = _built(verb, *_entry(verb)[:3])
    return function, copy(parser)  # a parse that fails leaves --print_config behind in its parser


@cache
def _built(verb: str, module: str, name: str, positional: bool) -> tuple[Callable[..., Any], Any]:
    from jsonargparse import ArgumentParser

    function = getattr(importlib.import_module(module), name)
    beside = [f"sddlm {o}" for o in VERBS if o.startswith(f"{verb.split()[0]} ") and o != verb]
    parser = ArgumentParser(
        prog=f"sddlm {verb}",
        description=f"See also: {', '.join(beside)}" if beside else None,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the options; inherit: FILE in it builds on another",
    )
    parser.add_argument(
        "--import",
        help="module with classes of your own, such as an objective; it is looked for in this "
        "folder too; may be repeated; never read from a YAML file",
    )
    parser.add_function_arguments(function, as_positional=positional, sub_configs=False)
    if verb == "train":
        parser.set_defaults({"objective": "SDDLM"})
    return function, parser


def _parse(verb: str, arguments: list[str]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The verb's function, and its arguments from the command line and YAML files."""
    import yaml

    from sddlm.cli_errors import made
    from sddlm.flags import PRINTS, import_modules, read_flags
    from sddlm.options import Layer, merge, option_types, required

    module, name, positional, _ = _entry(verb)
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    types, needed = option_types(function), required(function)
    switches = {name for name, hint in types.items() if bool in kinds(hint)}
    flags = read_flags(arguments, types, switches, needed if positional else [])
    paths, imports, prints = (
        [value for name, value in flags if name == each] for each in ("config", "import", PRINTS)
    )
    import_modules(imports)
    layers = [Layer("", {n: v}) for n, v in flags if n not in ("config", "import", PRINTS)]
    options = merge([*_read(verb, function, paths), *layers], function)
    _, parser = _parser(verb, imports)
    for missing in needed if not prints else []:
        if missing not in options:
            place = "RUN" if missing.startswith("model") else missing.upper()
            known = {"RUN": "the directory of a run or model", "OUT": "--out"}
            what = known.get(place, f"the {missing}")
            example = "--out runs/first" if place == "OUT" else place
            raise ConfigError(f"{what} is missing: type sddlm {verb} {example}")
    try:
        parsed = parser.parse_args([f"--config={yaml.safe_dump(options)}", *prints])
        chosen = parser.instantiate(parsed, instantiators=[(partial(made, function), object, True)])
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, ConfigError):  # a choice refused by the object itself
            raise error.__cause__ from None
        raise ConfigError(one_line(error)) from error
    for extra in ("config", "import"):
        chosen.pop(extra, None)
    return function, chosen.as_dict()


def _read(verb: str, function: Callable[..., Any], paths: list[str]) -> list[Layer]:
    """The YAML files and those they inherit from, with what the verb is to know of them."""
    from sddlm.inherit import read_files

    files = read_files(paths)
    if not files or verb not in READS_RECIPES:
        return files
    module, name, *_ = VERBS["train"]
    recipe = signature(getattr(importlib.import_module(module), name)).parameters
    foreign = recipe.keys() - signature(function).parameters.keys()
    return [
        each._replace(options={k: v for k, v in each.options.items() if k not in foreign})
        for each in files
    ]


if __name__ == "__main__":
    sys.exit(main())
