"""The documents: commands, settings, recipes, links and figures are true. No command is run; neither Ray nor an engine starts."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from profuser.ablation.arms import find_arms
from profuser.recipe import Recipe, find_arm, load_recipe
from profuser.recipe.layers import merge, read_layers, sections_in
from profuser.recipe.loading import parse_recipe
from profuser.run.stages import STAGES
from ray_jobs.cli.app import app
from ray_jobs.cli.options import RECIPES
from ray_jobs.cli.stage_commands import stage_app

ROOT = Path(__file__).parents[1]
FRONT = ROOT / "README.md"
ROOMS = [ROOT / folder / "README.md" for folder in ("profuser", "ray_jobs", "cluster", "notebooks", "tests")]
DOCUMENTS = [FRONT, *ROOMS, ROOT / "cluster/kuberay/README.md", ROOT / "CHANGELOG.md"]
FRONT_BYTES = 12_000
SHELL = ("bash", "sh")
SOURCE_SUFFIXES = (".py", ".md", ".yaml", ".toml", ".ipynb", ".json", ".png", ".csv", ".j2")
OPERATORS = ("&&", "||", ";", "|", "&", ">")
PROGRAMS = ("profuser", "python", "python3", "make")
COMMAND = r"(profuser|make)( |$)|python (-m|locks/)"
"""How a command within a sentence begins."""
PLACEHOLDERS = {"STAGE": "fuse"}
"""Words in commands that stand for a choice."""
FORMER = ("python -m ray_jobs.STAGE",)
"""Commands that are named because they are gone."""
ELSEWHERE = ("tasks/rivers.yaml", "kuberay/kuberay-operator")
"""Paths of the reader's own, and a Helm chart."""

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))


class Code(NamedTuple):
    """A piece of code in a document."""

    document: Path
    text: str
    language: str
    """Of a fenced block; `inline` within a sentence, `indented` for an indented block."""


class Mistake(Exception):  # noqa: N818
    """What is wrong with a command."""


# What documents hold.


@cache
def tokens(document: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(document.read_text())


def inline(document: Path) -> Iterator[Token]:
    for token in tokens(document):
        yield from token.children or ()


def codes(document: Path) -> Iterator[Code]:
    for token in tokens(document):
        if token.type == "fence":
            yield Code(document, token.content, token.info.strip())
        elif token.type == "code_block":
            yield Code(document, token.content, "indented")
    for token in inline(document):
        if token.type == "code_inline":
            yield Code(document, token.content, "inline")


def headings(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    found = tokens(document)
    texts = [found[i + 1] for i, token in enumerate(found) if token.type == "heading_open"]
    plain = ("".join(child.content for child in text.children or ()) for text in texts)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in plain}


def tables(document: Path) -> Iterator[list[list[str]]]:
    """Tables as rows of cells, headings first."""
    lines = document.read_text().splitlines()
    for token in tokens(document):
        if token.type == "table_open" and token.map:
            rows = [line.strip().strip("|").split("|") for line in lines[slice(*token.map)]]
            yield [[cell.strip() for cell in row] for row in rows if set("".join(row)) - set("- :")]


# Commands.


def simple_commands(code: Code) -> Iterator[list[str]]:
    """The commands of a shell block, without comments, variables and what comes before them."""
    for line in code.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in OPERATORS:
                yield from filter(None, [ours(words)])
                words = []
            else:
                words.append(word)


def ours(words: Sequence[str]) -> list[str] | None:
    """The part of a command that this project defines, from `ray job submit ... -- profuser run` too; None where it has none."""
    words = [word for index, word in enumerate(words) if "=" not in word or index]
    outer = bool(words) and words[0] in ("ray", "docker")
    for index, word in enumerate(words):
        if word.split("/")[-1] in PROGRAMS and (index == 0 or outer):
            return [word.split("/")[-1], *words[index + 1 :]]
    return None


def commands() -> list[Any]:
    found = []
    for document in DOCUMENTS:
        for code in codes(document):
            if code.language in (*SHELL, "indented"):
                found += [(document, command, False) for command in simple_commands(code)]
            elif code.language == "inline" and code.text not in FORMER and re.match(COMMAND, code.text):
                found += [(document, command, True) for command in simple_commands(code)]
    seen = {(str(document.relative_to(ROOT)), *words): (words, named) for document, words, named in found}
    return [pytest.param(*value, id=" ".join(key)) for key, value in seen.items()]


def parse(typed: typer.Typer, words: Sequence[str]) -> dict[str, Any]:
    """Parses a command line without running it, and returns its parameters; Mistake where it would be refused."""
    command, given = typer.main.get_command(typed), {}
    for node in leaves(command):
        node.callback = lambda **parameters: given.update(parameters)
    try:
        code = command.main(list(words), prog_name="it", standalone_mode=False)
    except Exception as error:
        # typer has a copy of click inside: only the errors' message is the same.
        raise Mistake(error.format_message() if hasattr(error, "format_message") else repr(error)) from None
    if code:
        raise Mistake(f"exit code {code}")
    return given


def leaves(command: Any) -> Iterator[Any]:
    """A command, or all below a group."""
    below = getattr(command, "commands", None)
    if below is None:
        yield command
    for each in (below or {}).values():
        yield from leaves(each)


def is_name(typed: typer.Typer, words: Sequence[str]) -> bool:
    """Whether words are the name of a command or of a group, and nothing more."""
    command: Any = typer.main.get_command(typed)
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            return False
    return True


def check_typed(typed: typer.Typer, words: Sequence[str], named: bool) -> None:
    """Raises Mistake where a command line would be refused: by its options, by its settings, or by what they name."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if named and is_name(typed, words):
        return
    given = parse(typed, words)
    for name in [*(given.get("redo") or ()), given.get("until"), (given.get("only") or "").split("/")[0]]:
        if isinstance(name, str) and name and name not in STAGES:
            raise Mistake(f"no stage {name!r}")
    try:
        if arms := given.get("arms"):
            find_arms(arms, RECIPES)
        arm = find_arm(given["arm"], RECIPES) if given.get("arm") else None
        recipe = str(given.get("recipe", "demo"))
        is_ours = (RECIPES / f"{recipe}.yaml").is_file() or Path(recipe).parts[0] in ("cluster", "ray_jobs")
        load_recipe(recipe if is_ours else "demo", given.get("settings") or (), RECIPES, arm)
    except Exception as error:
        raise Mistake(str(error)) from None


def check_make(words: Sequence[str]) -> None:
    """Raises Mistake where the Makefile has no such target, or reads no such variable."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        variable, _, value = word.partition("=")
        pattern = rf"\$\({variable}\)" if value else rf"^{re.escape(word)}:"
        if not re.search(pattern, makefile, re.MULTILINE):
            raise Mistake(f"the Makefile has no {word}")


def check_benchmarks(words: Sequence[str]) -> None:
    """Raises Mistake where `python -m tests.benchmarks ...` would be refused."""
    name, *options = words or [""]
    if name in ("peers", "arms"):
        module = "peers.run" if name == "peers" else name
        try:
            import_module(f"tests.benchmarks.{module}").parse(options)
        except SystemExit:
            raise Mistake(f"tests.benchmarks {name} refuses {options}") from None
    elif name == "gpu":
        if set(options) - {"--tiny", "--output"}:
            raise Mistake(f"tests.benchmarks gpu has no {options}")
    else:
        for each in words:
            if not (ROOT / f"tests/benchmarks/bench_{each}.py").is_file():
                raise Mistake(f"no benchmark {each!r}")


def check_module(module: str, words: Sequence[str], named: bool) -> None:
    """Raises Mistake where `python -m MODULE ...` would be refused."""
    if module == "ray_jobs":
        check_typed(stage_app(), words, named)
    elif module == "ray_jobs.cli":
        check_typed(app, words, named)
    elif module == "tests.benchmarks":
        check_benchmarks(words)
    elif module in ("cluster.autoscaling", "cluster.chaos"):
        check_typed(import_module(module).app, words, named)
    elif (ROOT / module.split(".")[0]).is_dir() and not (ROOT / f"{module.replace('.', '/')}.py").is_file():
        raise Mistake(f"no module {module}")


def check_command(words: Sequence[str], named: bool = False) -> None:
    """Raises Mistake where a command of this project would be refused.

    Args:
        words: the program and its arguments.
        named: whether a command's name alone is allowed, as in a sentence.
    """
    program, *rest = words
    if program == "profuser":
        check_typed(app, rest, named)
    elif program == "make":
        check_make(rest)
    elif rest[:1] == ["-m"]:
        check_module(rest[1], rest[2:], named)
    elif rest and "/" in rest[0] and not (ROOT / rest[0]).is_file():
        raise Mistake(f"no file {rest[0]}")


@pytest.mark.parametrize(("words", "named"), commands())
def test_a_documented_command_is_one_that_the_command_line_takes(words, named, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_command(words, named)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("profuser run recipe.yaml --bogus", "No such option"),
        ("profuser run", "Missing argument"),
        ("profuser fly demo", "No such command"),
        ("profuser plan demo --probe many", "valid integer"),
        ("profuser run demo --redo nothing", "no stage 'nothing'"),
        ("profuser run demo --arm nobody", "no such arm"),
        ("profuser run demo --set fuse.batch_rows=1", "no such setting"),
        ("profuser lab ablate --arms nobody", "nobody"),
        ("python -m ray_jobs collect demo --reward x", "No such option"),
        ("python -m ray_jobs.collect demo", "no module"),
        ("python -m tests.benchmarks nothing", "no benchmark"),
        ("python -m tests.benchmarks peers --only nothing", "refuses"),
        ("python -m cluster.chaos --deaths 3", "No such option"),
        ("python locks/nothing.py cpu", "no file"),
        ("make nothing", "no nothing"),
        ("make test SPEED=2", "no SPEED=2"),
        ("ray job submit --address http://HEAD:8265 -- profuser run demo --bogus", "No such option"),
    ],
)
def test_a_wrong_command_is_found(line, reason):
    (words,) = simple_commands(Code(FRONT, line, "bash"))
    with pytest.raises(Mistake, match=reason):
        check_command(words)


def test_every_document_with_commands_is_read():
    """Guards the test above: what is found is a good part of what was written."""
    found = {document: [] for document in DOCUMENTS}
    for code in (code for document in DOCUMENTS for code in codes(document) if code.language in SHELL):
        found[code.document] += simple_commands(code)
    assert len(found[FRONT]) >= 8
    assert len(found[ROOT / "ray_jobs/README.md"]) >= 25


# Settings and recipes.


def recipe_blocks() -> list[Any]:
    found = [code for document in DOCUMENTS for code in codes(document) if code.language == "yaml"]
    return [pytest.param(code, id=f"{code.document.parent.name}-{n}") for n, code in enumerate(found)]


@pytest.mark.parametrize("code", recipe_blocks())
def test_a_documented_recipe_is_valid(code):
    tree = yaml.safe_load(code.text)
    whole = tree if "sources" in tree else merge(read_layers(RECIPES / "demo.yaml", RECIPES), tree)
    parse_recipe(whole, str(code.document))


def test_the_front_door_has_a_whole_recipe():
    assert any("sources" in yaml.safe_load(code.text) for code in codes(FRONT) if code.language == "yaml")


def unknown_setting(path: str) -> str | None:
    """The part of a dotted setting that no recipe has; None where all are known, or the first is no section of a recipe."""
    if path.split(".")[0] not in Recipe.model_fields:
        return None
    sections: set[Any] = {Recipe}
    for part in path.split("."):
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if not fields:
            return part
        sections = set().union(*(sections_in(field.annotation) for field in fields))
    return None


@each_document
def test_a_setting_that_is_named_exists(document):
    renamed = {"fuse.batch_rows"} if document.name == "CHANGELOG.md" else set()
    named = {re.split(r"[:=]", code.text)[0] for code in codes(document) if code.language == "inline"}
    dotted = {name for name in named - renamed if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name)}
    files = {name for name in dotted if f".{name.split('.')[-1]}" in (*SOURCE_SUFFIXES, ".csv")}
    assert {name: part for name in dotted - files if (part := unknown_setting(name))} == {}


def test_a_setting_that_does_not_exist_is_found():
    assert unknown_setting("fuse.batch_rows") == "batch_rows"
    assert unknown_setting("fuse.optimizer.learning_rate") is None


# Links, paths, and the form of documents.


def link_fault(document: Path, target: str) -> str | None:
    """What is wrong with a link; None for one that leads somewhere, or off this repository."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    if not file.exists():
        return f"{target}: no such file"
    page = file / "README.md" if file.is_dir() else file
    if anchor and anchor not in headings(page):
        return f"{target}: no such heading"
    return None


@each_document
def test_links_lead_somewhere(document):
    targets = [str(token.attrs.get("href") or token.attrs.get("src")) for token in inline(document) if token.attrs]
    targets += re.findall(r'(?:src|href)="([^"]+)"', document.read_text())
    assert [fault for target in targets if (fault := link_fault(document, target))] == []


def test_a_broken_link_is_found():
    assert link_fault(FRONT, "nowhere.md") == "nowhere.md: no such file"
    assert link_fault(FRONT, "tests/README.md#nowhere") == "tests/README.md#nowhere: no such heading"
    assert link_fault(FRONT, "tests/README.md#benchmarks") is None


def is_missing(document: Path, text: str) -> bool:
    """Whether code is the path of a file or folder of this repository, and there is none.

    Artifacts and models of a run look alike: a path is taken for one of ours by its first folder, or by its suffix.
    """
    path = Path(text)
    if not re.fullmatch(r"[\w.\-]+/[\w.\-/]*", text) or any(re.fullmatch("[A-Z_]+", part) for part in path.parts):
        return False
    folders = (document.parent, ROOT)
    is_ours = any((folder / path.parts[0]).exists() for folder in folders) or path.suffix in SOURCE_SUFFIXES
    generated = path.parts[0] in ("runs", ".venv", ".gpu-wheels")
    return is_ours and not generated and not any((folder / path).exists() for folder in folders)


@each_document
def test_paths_that_are_named_exist(document):
    named = [code.text for code in codes(document) if code.language == "inline"]
    named += [word for code in codes(document) if code.language in SHELL for word in code.text.split()]
    assert [text for text in named if text not in ELSEWHERE and is_missing(document, text)] == []


def test_a_path_that_does_not_exist_is_found():
    assert is_missing(FRONT, "profuser/utils.py")
    assert is_missing(FRONT, "cluster/nowhere")
    assert not is_missing(FRONT, "profuser/recipe")
    assert not is_missing(FRONT, "fuse/model")


@each_document
def test_names_that_are_given_with_a_file_are_in_it(document):
    """As in `profuser/rewards/kinds.py` (`KINDS`)."""
    pairs = re.findall(r"`([\w/]+\.py)` \(((?:`\w+`(?:, )?)+)\)", document.read_text())
    missing = []
    for file, names in pairs:
        text = (ROOT / file).read_text()
        missing += [(file, name) for name in re.findall(r"\w+", names) if not re.search(rf"\b{name}\b", text)]
    assert missing == []
    assert document != ROOT / "profuser/README.md" or len(pairs) > 10


def test_the_front_door_is_short():
    assert len(FRONT.read_bytes()) <= FRONT_BYTES


@pytest.mark.parametrize("document", ROOMS, ids=lambda file: file.parent.name)
def test_a_room_begins_with_a_paragraph_and_a_table_of_its_folders(document):
    kinds = [token.type for token in tokens(document) if token.level == 0 and token.nesting == 1]
    assert kinds[:3] == ["heading_open", "paragraph_open", "table_open"]
    rows = next(tables(document))
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    tracked = subprocess.run(["git", "ls-files", "."], cwd=document.parent, capture_output=True, text=True, check=True)
    folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert folders - named == set()


def test_every_room_is_linked_from_the_front_door():
    targets = {str(token.attrs.get("href")) for token in inline(FRONT)}
    assert {str(document.relative_to(ROOT)) for document in ROOMS} <= targets


# Figures.


def test_every_output_at_the_front_door_is_of_a_whole_output():
    whole = [code.text.splitlines() for code in codes(ROOT / "notebooks/README.md") if code.language == "text"]
    shown = [code.text.splitlines() for code in codes(FRONT) if code.language == "text"]
    assert len(shown) > 1
    for block in shown:
        lines = [line for line in block if line != "..."]
        assert any(is_within(lines, output) for output in whole), block


def is_within(lines, output):
    """Returns whether an output has these lines in this order."""
    rest = iter(output)
    return all(line in rest for line in lines)


def measured() -> list[dict[str, set[str]]]:
    """Figures of every arm in each committed table of an ablation."""
    found: list[dict[str, set[str]]] = []
    for file in sorted((ROOT / "notebooks" / "results").glob("*/table.md")):
        found.append({})
        for table in tables(file):
            for row in table[1:]:
                found[-1].setdefault(row[0], set()).update(row[1:])
    return found


@pytest.mark.parametrize("document", [FRONT, ROOT / "notebooks/README.md"], ids=lambda file: file.parent.name)
def test_figures_of_an_ablation_are_those_of_the_committed_table(document):
    committed, num_rows = measured(), 0
    for table in tables(document):
        if table[0][0] != "arm":
            continue
        for row in table[1:]:
            # `0.265 (0.263 to 0.270)` is a value and a range: two columns there.
            cells = [part for cell in row[1:] for part in re.split(r" \((?=\d)", cell.rstrip(")"))]
            cells = [re.sub(r"^([\d.]+) to ([\d.]+)$", r"\1 - \2", cell) for cell in cells]
            own = set(filter(None, cells))
            assert any(own <= each.get(row[0], set()) for each in committed), row[0]
            num_rows += 1
    assert num_rows >= 5
