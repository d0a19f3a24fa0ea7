"""What the documents say is true: paths exist, commands run, every file says what it is for."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", pattern], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [path for line in listed.splitlines() if (path := REPOSITORY / line).is_file()]


def tree() -> str:
    readme = (REPOSITORY / "README.md").read_text()
    return readme[readme.index("## The tree") : readme.index("Imports run one way")]


def test_every_path_in_the_tree_exists() -> None:
    folder, missing = Path(), []
    for line in tree().splitlines():
        if match := re.match(r"    (\w+)/\s", line):
            folder = Path(match[1])
            missing += [] if (REPOSITORY / folder).is_dir() else [str(folder)]
        for name in re.findall(r"\b\w+\.(?:py|sh)\b", line):
            places = (Path(), folder, folder / "callbacks", folder / "sections", folder / "selftests", folder / "recipes")
            missing += [] if any((REPOSITORY / place / name).exists() for place in places) else [f"{folder}: {name}"]
    assert not missing


def test_the_tree_names_every_module_of_the_main_packages() -> None:
    text = tree()
    modules = [path for package in ("smol_model", "smol_data", "smol_train") for path in tracked(f"{package}/*.py")]
    unnamed = [str(p.relative_to(REPOSITORY)) for p in modules if p.parent.name != "callbacks" and p.name not in text]
    assert [name for name in unnamed if not name.endswith("__init__.py")] == []


def test_links_and_folders_in_the_documents_exist() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_recorded_result_says_by_which_command_it_was_made() -> None:
    results = tracked("docs/results/*.md")
    assert results and not [path.name for path in results if "python -m " not in path.read_text()]


@pytest.mark.parametrize("path", tracked("*.py"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    source = path.read_text()
    if source.strip():
        assert ast.get_docstring(ast.parse(source)), "open the file with a docstring"


def commands() -> list[str]:
    """Commands of ours in the documents that need neither data nor a GPU: those with --dry-run, plans, or a --help of each."""
    found = set()
    ours = r"pretrain_smol\.py|-m (?:data_tools|conversion|post_training|evaluation|(?:smol_train|slurm|benchmarks)\.\w+)"
    for document in DOCUMENTS:
        for command in re.findall(rf"python (?:{ours}) ?[^\n`|\"]*", document.read_text()):
            words = shlex.split(re.split("->|[:;] ", command)[0], comments=True)[1:]
            if "--dry-run" in words or (words[1] == "smol_train.plan" and "C.yaml" not in words):
                found.add(shlex.join(words))
            elif words[0] == "-m":
                subcommand = [word for word in words[2:3] if re.fullmatch(r"[a-z][a-z-]*", word)]
                found.add(shlex.join([*words[:2], *subcommand, "--help"]))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_documents_run(command: str) -> None:
    result = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def submissions() -> list[str]:
    """What the documents give to submit.sh; C.yaml stands for a configuration of the reader's."""
    found = set()
    for document in DOCUMENTS:
        for command in re.findall(r"bash slurm/submit\.sh ((?:--[\w-]+ )?[a-z_]+ \S*\.yaml[^\n`|;#]*)", document.read_text()):
            words = [word for word in shlex.split(command) if word not in ("--dry-run", "--test-only")]
            found.add(shlex.join(words).replace(" C.yaml", " configs/smollm3/pretrain.yaml"))
    return sorted(found)


@pytest.mark.parametrize("arguments", submissions())
def test_jobs_in_the_documents_can_be_submitted(arguments: str, tmp_path: Path) -> None:
    settings = tmp_path / "env.sh"
    example = (REPOSITORY / "slurm" / "env.sh.example").read_text()
    settings.write_text(f"{example}\nSMOL_PYTHON={sys.executable} RUN_ROOT={tmp_path} MODEL=runs/chat/mid/hf/step_8\n")
    command = ["bash", "slurm/submit.sh", "--dry-run", *shlex.split(arguments)]
    result = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "SMOL_ENV": str(settings), "USER": "me"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"--job-name={arguments.split()[0]}-" in result.stdout and list(tmp_path.iterdir()) == [settings]


def test_the_tests_that_the_documents_name_exist() -> None:
    named = {(name, *test) for name in DOCUMENTS for test in re.findall(r"`(test_\w+)::(test_\w+)`", name.read_text())}
    assert named
    defined = {
        (path.stem, test) for path in tracked("tests/*.py") for test in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert [test for test in named if test[1:] not in defined] == []


def test_every_cell_of_the_parallelism_table_names_a_test_or_says_gpu() -> None:
    text = (REPOSITORY / "docs" / "parallelism.md").read_text()
    rows = [line.split("|")[1:-1] for line in text[text.index("| feature |") :].split("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 8
    for feature, on_cpu, *on_gpu in rows:
        assert "::test_" in on_cpu, feature
        assert all(cell.strip().startswith(("GPU", "refused")) for cell in on_gpu), feature


def test_scripts_are_strict_and_say_what_they_do() -> None:
    for script in [*tracked("*.sh"), REPOSITORY / ".ci" / "run"]:
        lines = script.read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# "), script
        assert "set -euo pipefail" in lines, script
        subprocess.run(["bash", "-n", str(script)], check=True)
