"""The command line: a verb, and the function it calls.

Only the verb's own module is imported, so ``sddlm --help`` needs neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

#: verb: (module, function, required arguments are positional, what it does)
VERBS: dict[str, tuple[str, str, bool, str]] = {
    "train": ("sddlm.train.run", "train_model", False, "train a model on text"),
    "sample": ("sddlm.sampling.run", "sample", True, "write text with a trained model"),
    "eval": ("sddlm.eval.run", "evaluate", True, "measure a trained model"),
}

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
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {v:<8} {row[3]}" for v, row in VERBS.items())))
        return 0
    if arguments[0] == "--version":
        from sddlm import __version__

        print(__version__)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return _fail(f"there is no verb {verb!r}; choose one of {', '.join(VERBS)}")
    return _run(verb, rest)


def _run(verb: str, arguments: list[str]) -> int:
    from sddlm.errors import ConfigError

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        function, chosen = _parse(verb, arguments)
        result = function(**chosen)
        if verb == "sample":
            print("\n\n".join(f"--- {i + 1} ---\n{text}" for i, text in enumerate(result)))
    except ConfigError as error:
        return _fail(str(error), verb)
    except KeyboardInterrupt:
        return 130
    except (OSError, FloatingPointError) as error:
        return _fail(str(error), verb, code=1)
    return 0


def _parse(verb: str, arguments: list[str]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The verb's function, and its arguments from the command line and YAML files."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    from sddlm.errors import ConfigError

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    module, name, positional, _ = VERBS[verb]
    function = getattr(importlib.import_module(module), name)
    parser = ArgumentParser(prog=f"sddlm {verb}", exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_function_arguments(function, as_positional=positional, sub_configs=False)
    if verb == "train":
        parser.set_defaults({"objective": "CalibratedDenoising"})
    try:
        parsed = parser.parse_args(arguments)
        chosen = parser.instantiate(parsed)
    except Exception as error:
        raise ConfigError(_one_line(error)) from error
    chosen.pop("config", None)
    return function, chosen.as_dict()


def _one_line(error: BaseException) -> str:
    """What a parser says over several lines, in one."""
    return re.sub(r"\s+", " ", str(error)).strip()


def _fail(message: str, verb: str = "", *, code: int = 2) -> int:
    print(f"sddlm{' ' if verb else ''}{verb}: {_one_line(Exception(message))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
