"""Task files for lm-eval: its own definitions of the tasks, with questions from local files.

A task of lm-eval is a YAML file that names a data set on the Hugging Face hub, the prompt, the
choices and the metrics. `local_tasks` writes a folder with a YAML of the same name for each task:
it includes lm-eval's own and changes nothing but where the questions come from, a file of JSON
lines beside it in the schema of the hub. So prompts, choices and metrics are lm-eval's.

lm-eval has no way for other packages to announce a model. Its own command line finds ours by such
a file, which names our adapter (``python -m sddlm.eval.tasks`` writes them):

    python -m sddlm.eval.tasks piqa,copa OUT [FILES]
    lm_eval --model sddlm --model_args path=RUN --tasks OUT/piqa.yaml,OUT/copa.yaml
"""

from __future__ import annotations

import glob
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from sddlm.errors import ConfigError, closest
from sddlm.eval.layouts import LOCAL, Record
from sddlm.files import atomic_write

SPLIT = "local"
"""Name of the only split of a local task."""


def check_tasks(names: Sequence[str], files: Path | None, limit: int | None = None) -> None:
    """Refuse what cannot be evaluated, without loading lm-eval or a model.

    Args:
        names: of tasks, as in lm-eval, or paths of YAML files.
        files: folder with their questions; None leaves the names and the data to lm-eval.
        limit: most questions of a task; None is all.

    Raises:
        ConfigError: lm-eval is missing, there are no names, a name is given twice, is no task of
            lm-eval, its file is missing, or the limit is below 1.
    """
    _definitions()
    if not names or not all(names):
        raise ConfigError(f"--tasks needs names, such as {', '.join(LOCAL)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(f"--tasks names {twice} twice; name it once")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}, must be at least 1; leave it out for all questions")
    for name in names:
        if not task_files(name, files) and files:
            _file(name, files)


def task_files(name: str, files: Path | None) -> list[Path]:
    """The user's own YAML files that a name means; none if it is that of a task.

    Args:
        name: a file, a folder with such files, or a task of which ``files`` has ``NAME.yaml``.
        files: folder with questions and maybe tasks.

    Raises:
        ConfigError: it is written as a path, and nothing is there.
    """
    given = Path(name)
    if files and (files / f"{name}.yaml").is_file():
        return [files / f"{name}.yaml"]
    if given.suffix not in (".yaml", ".yml") and given.name == name:
        return []
    found = sorted(given.glob("*.yaml")) if given.is_dir() else [given]
    if not found or not found[0].is_file():
        raise ConfigError(f"--tasks {name}: no such YAML file of a task, or folder with some")
    return found


def local_tasks(names: Sequence[str], files: Path | None, out: Path) -> Path:
    """Write a folder of tasks for lm-eval (``--tasks OUT/NAME.yaml``).

    Files may have the schema of the hub or the layouts of llm-foundry (ARC), llama.cpp (HellaSwag),
    the original PIQA (labels in a file ``...-labels.lst`` beside it), BoolQ, ARC, OpenBookQA and
    CommonsenseQA, and LAMBADA with the last word apart. All questions are in one split, whatever
    split they are from.

    Args:
        names: of tasks of lm-eval, no groups.
        files: folder with their questions: ``NAME.jsonl``, the names in `LOCAL`, or a single
            ``NAME_*.jsonl``; None leaves the questions to the hub.
        out: the folder; what is in it of the same names is replaced.

    Returns:
        ``out``.

    Raises:
        ConfigError: see `check_tasks`; a line that is no question of its task, with its number; or
            a file that cannot be read or written.
    """
    check_tasks(names, files)
    for name in names:
        task, data, lines = _definition(name), None, []
        if files is not None:
            source, data = _file(name, files), (out / f"{name}.jsonl").resolve()
            lines = [_converted(name, *each) for each in _lines(source)]
            if not lines:
                raise ConfigError(f"{source} has no questions")
        try:
            out.mkdir(parents=True, exist_ok=True)
            if data:
                with atomic_write(data) as file:
                    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            with atomic_write(out / f"{name}.yaml") as file:
                file.write(_yaml(name, task, data))
        except OSError as error:
            raise ConfigError(f"cannot write tasks to {out}: {error.strerror}") from error
    return out


def _definitions() -> Path:
    """The folder of lm-eval's own tasks, found without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ConfigError("--tasks needs lm-eval; type: pip install 'sddlm[tasks]'")
    return Path(spec.origin).parent / "tasks"


@lru_cache
def _definition(name: str) -> Path:
    """lm-eval's own file of a task."""
    folder = _definitions()
    if name in LOCAL:
        if (found := folder / LOCAL[name].definition).is_file():
            return found
        raise ConfigError(f"this lm-eval has no {found}; 0.4.13 has: pip install 'lm-eval==0.4.13'")
    near = name.split("_")[0]  # of thousands of files; most lie where their names say
    line = re.compile(rf"^task: *([\"']?){re.escape(name)}\1 *$", re.MULTILINE)
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: near not in str(path)):
        if line.search(path.read_text(encoding="utf-8", errors="replace")):
            return path
    close = closest(name, LOCAL)
    meant = f"did you mean {close}? " if close else ""
    raise ConfigError(
        f"task {name} is none of lm-eval's that can have a file, groups left out: {meant}"
        f"known are {', '.join(LOCAL)} and any other with lines as on the hub; a task of your own "
        "is a YAML file: --tasks FILE.yaml"
    )


def _file(name: str, files: Path) -> Path:
    """The file with a task's questions."""
    _definition(name)
    looked = [f"{name}.jsonl", *(LOCAL[name].names if name in LOCAL else ())]
    for each in looked:
        if (files / each).is_file():
            return files / each
    found = sorted(files.glob(f"{glob.escape(name)}_*.jsonl"))
    if len(found) > 1:
        several = ", ".join(path.name for path in found)
        raise ConfigError(f"task {name} may be any of {several} in {files}: name it {name}.jsonl")
    if not found:
        looked += [f"{name}_*.jsonl", f"{name}.yaml"]
        raise ConfigError(f"no questions of task {name} in {files}: looked for {', '.join(looked)}")
    return found[0]


def _lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Every question with where it stands; PIQA's labels, if they are apart, put in."""
    beside = path.with_name(f"{path.stem}-labels.lst")
    labels = _read(beside).split() if beside.is_file() else None
    questions = [(i, t) for i, t in enumerate(_read(path).split("\n"), start=1) if t.strip()]
    if labels is not None and len(labels) != len(questions):
        raise ConfigError(f"{beside} has {len(labels)} labels, {path} {len(questions)} questions")
    for number, (at, text) in enumerate(questions):
        where = f"{path}, line {at}"
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{where} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{where} is no JSON object")
        yield where, record if labels is None else record | {"label": labels[number]}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _converted(name: str, where: str, record: Record) -> Record:
    """A question in the schema of the hub."""
    if name not in LOCAL:
        return record
    try:
        return LOCAL[name].convert(record)
    except KeyError as error:
        raise ConfigError(
            f"{where} has no {error.args[0]!r}; it has {', '.join(record)}"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where} is no question of this task: {error}") from error


def _yaml(name: str, definition: Path, data: Path | None) -> str:
    """A task that is lm-eval's own but for the data.

    The last line makes lm-eval import our adapter when it is given the path of the file, so that
    ``lm_eval --model sddlm --tasks FOLDER/NAME.yaml`` finds the model.
    """
    # JSON is YAML
    text = f"include: {json.dumps(str(definition))}\ntask: {name}\ntag: null\n"
    if data is not None:
        options = {"data_files": {SPLIT: str(data)}, "cache_dir": str(data.parent / "cache")}
        text += f"""dataset_path: json
dataset_name: null
dataset_kwargs: {json.dumps(options)}
training_split: null
validation_split: {SPLIT}
test_split: null
fewshot_split: null
"""
    adapter = "adapter: !function sddlm.eval.harness.NAME"
    return f"{text}metadata: {{version: {_version(definition)}, {adapter}}}\n"


def _version(definition: Path) -> str:
    """Version of lm-eval's own definition."""
    text = definition.read_text(encoding="utf-8")
    found = re.search(r"^ +version: *([\d.]+) *$", text, re.MULTILINE)
    include = re.search(r"^include: *(\S+) *$", text, re.MULTILINE)
    if found is None and include:
        return _version(definition.parent / include[1])
    return found[1] if found else "0"


def main() -> None:
    """Write task files for lm-eval's command line: ``NAMES OUT [FILES]``."""
    if not 3 <= len(sys.argv) <= 4:
        sys.exit("usage: python -m sddlm.eval.tasks NAME,... OUT [FOLDER WITH QUESTIONS]")
    names, out = sys.argv[1].split(","), Path(sys.argv[2])
    try:
        local_tasks(names, Path(sys.argv[3]) if len(sys.argv) > 3 else None, out)
    except ConfigError as error:
        sys.exit(f"sddlm.eval.tasks: {error}")
    written = ",".join(str(out / f"{name}.yaml") for name in names)
    print(f"next:  lm_eval --model sddlm --model_args path=RUN --tasks {written}")


if __name__ == "__main__":
    main()
