"""The command line: a verb, and the function it calls.

Only the verb's own module is imported, so ``sddlm --help`` needs neither torch nor Lightning.
Whatever a user can get wrong ends as one line: what was given, what is allowed, what to type.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sddlm.errors import ConfigError

if TYPE_CHECKING:
    from sddlm.inherit import File

#: verb: (module, function, required arguments are positional, what it does)
VERBS: dict[str, tuple[str, str, bool, str]] = {
    "prepare": ("sddlm.data.run", "prepare_text", False, "turn text into tokens ahead of training"),
    "plan": ("sddlm.plan.run", "plan", False, "tell what a training will need and cost"),
    "train": ("sddlm.train.run", "train_model", False, "train a model on text"),
    "distill": (
        "sddlm.train.distill",
        "distill",
        True,
        "make a trained model need fewer steps",
    ),
    "sample": ("sddlm.generation.run", "sample", True, "write text with a trained model"),
    "correct": (
        "sddlm.generation.correct",
        "correct",
        True,
        "replace what a trained model finds wrong in a text",
    ),
    "demo": ("sddlm.demo.run", "demo", True, "watch a trained model write"),
    "eval": ("sddlm.eval.run", "evaluate", True, "measure a trained model"),
}

#: verbs that take a recipe for ``train`` and leave aside the sections that are not theirs
READS_RECIPES = {"prepare", "plan"}

#: what begins with one dash and is a value all the same: ``-.jsonl``, standard input as JSON lines
_VALUE = re.compile(r"-\.")

USAGE = """usage: sddlm VERB [options]

Uniform-state diffusion language models: train, sample, evaluate, and believe the result.

{verbs}

sddlm VERB --help tells a verb's options. --config FILE reads them from YAML; flags win.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        exit code: 0, 2 for a wrong choice of the user, 1 for a failure, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    try:
        code = _run(verb, arguments[1:])
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(verb, error, 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has gone; Python's own flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, FloatingPointError) as error:
        return _fail(verb, error, 1)
    except SystemExit as end:  # after a verb's --help
        return int(end.code or 0)


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {v:<8} {row[3]}" for v, row in VERBS.items())))
        return 0
    if verb == "--version":
        from sddlm import __version__

        print(__version__)
        return 0
    if verb not in VERBS:
        close = "".join(f"; did you mean {v}?" for v in get_close_matches(verb, VERBS, 1))
        raise ConfigError(f"there is no verb {verb}, only {', '.join(VERBS)}{close}")
    function, chosen = _parse(verb, arguments)
    if verb == "sample" and chosen["out"] is None:
        chosen["out"] = str(Path(chosen["model_dir"]) / "samples.jsonl")
    with _messages():
        result = function(**chosen)
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if verb == "sample" and first:
        print("\n\n".join(f"--- {i + 1} ---\n{text}" for i, text in enumerate(result)))
    if verb == "correct" and chosen.get("out") is None:
        sys.stdout.write(result.text)
    if verb == "train" and first:
        print(f"metrics, curves and previews in {result}, the model in {result / 'model'}")
    if verb == "distill":
        print(f"each round is a run in {result}, the model is in {result / 'model'}")
    if verb in ("train", "distill") and first:
        print(f"next:  sddlm sample {result}\n       sddlm eval {result}")
    return 0


@contextmanager
def _messages() -> Iterator[None]:
    """What the library reports goes to stderr; what other libraries report does not."""
    logger, handler = logging.getLogger("sddlm"), logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _fail(verb: str, error: BaseException, code: int) -> int:
    name = f"sddlm {verb}" if verb in VERBS else "sddlm"
    line = " ".join(str(error).split()) or type(error).__name__
    print(f"{name}: {line}", file=sys.stderr)
    return code


def _parser(verb: str) -> tuple[Callable[..., Any], Any]:
    """The verb's function, and the parser of its options."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    module, name, positional, _ = VERBS[verb]
    function = getattr(importlib.import_module(module), name)
    parser = ArgumentParser(prog=f"sddlm {verb}", exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the options; inherit: FILE in it builds on another",
    )
    parser.add_function_arguments(function, as_positional=positional, sub_configs=False)
    if verb == "train":
        parser.set_defaults({"objective": "SDDLM"})
    return function, parser


def _parse(verb: str, arguments: list[str]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The verb's function, and its arguments from the command line and YAML files."""
    import yaml

    from sddlm.explain import explain
    from sddlm.inherit import merged, origins

    function, parser = _parser(verb)
    defaults = dict(parser.get_defaults().items())
    switches = {f"--{key}" for key, value in defaults.items() if isinstance(value, bool)}
    paths, flags = _files_and_flags(arguments, switches)
    files = _read(verb, function, paths)
    config = [f"--config={yaml.safe_dump(merged(files))}"] if files else []
    try:
        parsed = parser.parse_args([*config, *flags])
        chosen = parser.instantiate(parsed)
    except ConfigError:
        raise
    except Exception as error:
        example = f"sddlm {verb} {'RUN' if VERBS[verb][2] else '--out runs/first'}"
        told = explain(error, function, [*defaults], origins(files), flags, example)
        raise ConfigError(told) from error
    chosen.pop("config", None)
    return function, chosen.as_dict()


def _read(verb: str, function: Callable[..., Any], paths: list[str]) -> list[File]:
    """The YAML files and those they inherit from, with what the verb is to know of them."""
    from sddlm.explain import check_sections
    from sddlm.inherit import File, read_files

    files = read_files(paths)
    if files and verb in READS_RECIPES:
        module, name, *_ = VERBS["train"]
        recipe = signature(getattr(importlib.import_module(module), name)).parameters
        foreign = recipe.keys() - signature(function).parameters.keys()
        files = [
            File(path, {key: options[key] for key in options if key not in foreign})
            for path, options in files
        ]
    for file in files:
        check_sections(file, function)
    return files


def _files_and_flags(arguments: list[str], switches: set[str]) -> tuple[list[str], list[str]]:
    """The YAML files, to be read first so that flags win, and the rest; a bare switch is true."""
    files, flags = [], []
    left = list(arguments)
    while left:
        flag = left.pop(0)
        if flag == "--config":
            if not left:
                raise ConfigError("--config needs a value: --config FILE")
            files.append(left.pop(0))
        elif flag.startswith("--config="):
            files.append(flag.removeprefix("--config="))
        elif flag in switches and left[:1] not in (["true"], ["false"]):
            flags.append(f"{flag}=true")
        elif left and flag.startswith("--") and "=" not in flag and _VALUE.match(left[0]):
            flags.append(f"{flag}={left.pop(0)}")  # else taken for a flag
        else:
            flags.append(flag)
    return files, flags


if __name__ == "__main__":
    sys.exit(main())
