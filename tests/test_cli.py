"""The command line: exit codes, streams, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torchvision
import typer.main
import yaml

from generator import __version__
from generator.cli import _COMMANDS as COMMANDS
from generator.cli import _GROUPS as GROUPS
from generator.cli import app, hints, main
from generator.cli.options import complete_models
from generator.errors import TrtgenError
from generator.spec.file import make_spec
from tests.tiny_onnx import write_tiny_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "generator", *arguments], capture_output=True, text=True, check=False)


def test_help_is_fast_and_names_every_command() -> None:
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.5  # of a processor, since a machine may be busy
    for command in (*COMMANDS, *GROUPS):
        assert f" {command} " in result.stdout


def help_of(command: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "generator", *command.split(), "--help"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.parametrize("name", [*COMMANDS, *(f"{group} {name}" for group, names in GROUPS.items() for name in names)])
def test_help_shows_every_option_whole_and_an_example(name: str) -> None:
    text = help_of(name)
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    for parameter in command.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert not option.startswith("-") or f" {option} " in text, option
        for default in re.findall(r"\[default: \S+", parameter.help or ""):  # rich would take it for markup
            assert default.split()[1] in text
    assert not re.search(r"<\w+|\[\[", text), "types of Python"
    assert max(len(line) for line in text.splitlines()) <= 80
    (example,) = re.findall(r"Example: (trtgen .*)", text)
    assert f"trtgen {name}" in example
    for option in re.findall(r"--\w[\w-]+", example):
        assert any(option in parameter.opts for parameter in command.params)


HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "tritonclient", "numpy", "pydantic", "PIL", "jinja2", "rich")


def imported_by(code: str, cwd: Path | None = None) -> set[str]:
    script = f"import sys\n{code}\nprint(*(set(sys.modules) & {set(HEAVY)!r}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=cwd)
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [[], ["release"]])
def test_without_a_command_the_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith(f"Usage: {' '.join(['trtgen', *arguments])} ")
    assert "Commands:" in error


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("import generator.cli\ngenerator.cli.main(['--help'])") == set()


def test_a_rebuild_with_nothing_changed_imports_no_torch_and_takes_less_than_a_second(tmp_path: Path) -> None:
    write_tiny_onnx(tmp_path / "net.onnx", size=224)
    arguments = ["build-repo", str(tmp_path / "net.onnx"), "--recipe", "imagenet", "--labels", "index", "--no-verify"]
    arguments += ["-r", str(tmp_path / "repo")]
    assert main(arguments) == 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = imported_by(f"import generator.cli\nassert generator.cli.main({arguments!r}) == 0")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1  # of a core, since other tests run meanwhile
    # onnx itself is needed to find the weights beside an ONNX file
    assert not imported & {"torch", "torchvision", "onnxruntime", "tritonclient"}


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trtgen {__version__}\n"
    assert main(["serve", "--no-such-option"]) == 2
    assert capsys.readouterr().err == "error: No such option: --no-such-option\nhint: trtgen serve --help\n"
    assert main(["no-such-command"]) == 2
    assert main(["build-repo", "--no-such-option"]) == 2


def find_float_options() -> list[tuple[str, str]]:
    """Return each command, and an option of it that takes a number which need not be whole."""

    def walk(command: Any, path: str = "") -> Iterator[tuple[str, str]]:
        for name, one in getattr(command, "commands", {}).items():
            yield from walk(one, f"{path} {name}".strip())
        for parameter in command.params:
            if parameter.type_descriptor and parameter.type_descriptor.annotation is float:
                yield path, parameter.opts[0]

    return list(walk(typer.main.get_command(app)))


# What else a command has to be given before it looks at its options.
REQUIRED = {
    "canary": ["a:1"],
    "classify-all": ["photos", "--out", "results"],
    "detect-all": ["photos", "--out", "results"],
    "detect-plan": ["a.jpg", "--plan", "model.plan"],
    "bench": [__file__],
    "release prune": ["store"],
}


@pytest.mark.parametrize(("command", "option"), find_float_options())
def test_a_number_that_is_none_is_refused(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("nan", "inf", "-inf"):
        assert main([*command.split(), *REQUIRED.get(command, []), f"{option}={value}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: Invalid value for '{option}'"), value
        assert said.endswith(f"hint: trtgen {command} --help\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["perf"], ["tune"], ["bench", __file__]])
def test_a_wait_that_no_system_call_takes_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--timeout", "1e7"]) == 2
    assert "Invalid value for '--timeout': Input should be less than or equal to 1000000" in capsys.readouterr().err


def test_the_options_that_take_numbers_are_found() -> None:
    assert {("serve", "--ready-timeout-s"), ("perf", "--timeout"), ("tune", "--p99-ms")} <= {*find_float_options()}


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["build-repo", "-r", "models"], "error: no model was named", "hint: name one, such as demo or resnet50"),
        (["build-repo", "resnet5", "--no-verify"], "did you mean resnet50", "hint: use a name of that list"),
        (["build-repo", "a;b"], "'a;b' is not a valid model name", "hint: docs/spec.md lists every field"),
        (["build-repo", "x", "--spec", "none.yaml"], "names and options of models do not go with it", "hint: write"),
        (
            ["build-repo", "--spec", "none.yaml", "--classes", "2"],
            "--spec states everything but --target",
            "hint: write",
        ),
        (
            ["build-repo", "--spec", "none.yaml"],
            "none.yaml cannot be read",
            "hint: start from a commented models.yaml: trtgen init\n",
        ),
        (["build-repo", "none.onnx"], "none.onnx cannot be read", "hint: give the path of an ONNX file"),
        (["build-repo", "demo", "--require", "all", "--no-verify"], "asks for every stage", "hint: leave one"),
        (["build-repo", "demo", "--weights", "random"], "weights does not go with source: demo", "hint:"),
        (
            ["build-repo", "demo", "--classes", "7"],
            "classes is 7, but the model has 10",
            "hint: set classes: 10, or leave it out (--classes 10)\n",
        ),
        (["show", "resnet5"], "did you mean resnet50", "hint:"),
        (
            ["verify", "-r", "none"],
            "none holds no model made by trtgen",
            "hint: build one: trtgen build-repo demo --repository none\n",
        ),
        (["serve", "-r", "none"], "none", "hint: build a model: trtgen build-repo resnet50 --repository none\n"),
        (["serve"], "there is no model repository", "hint: build a model: trtgen build-repo resnet50\n"),
    ],
)
def test_errors_go_to_stderr_with_a_hint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert hint in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.rglob("model.onnx")) == []


def test_init_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert capsys.readouterr().out == "models.yaml\n"
    (tmp_path / "models.yaml").write_text("mine")
    assert main(["init"]) == 1
    assert (tmp_path / "models.yaml").read_text() == "mine"


def test_show_prints_the_resolved_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "efficientnet_b0", "--max-batch", "4"]) == 0
    (model,) = yaml.safe_load(capsys.readouterr().out)["models"]
    assert (model["recipe"]["interpolation"], model["batch"], model["classes"]) == (
        "bicubic",
        {"min": 1, "opt": 4, "max": 4},
        1000,
    )
    assert main(["show", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["recipe"]["crop"] == [96, 96]


def test_a_recipe_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["keras-caffe", "crop=320,300", "channels=BGR", "scale=1/127.5", "std=0.5", "exif=apply"]
    assert main(["show", "resnet18", *(word for one in given for word in ("--recipe", one))]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == (
        "# resnet18: image file -> turned upright -> RGB -> stretched to 320x300, nearest -> PIXELS uint8 "
        "[320, 300, 3] -> BGR -> / 127.5 -> - (103.939, 116.779, 123.68) -> / 0.5 -> network"
    )
    assert yaml.safe_load(shown)["models"][0]["recipe"]["crop"] == [320, 300]
    assert main(["show", "resnet18", "--recipe", "yolo", "--recipe", "fit=letterbox-corner"]) == 0
    said = capsys.readouterr().out
    assert "-> fitted into 640x640, linear -> filled to 640x640 right and below with (114, 114, 114) ->" in said
    assert "-> x 1 ->" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such"], "recipe.base: Input should be 'imagenet', 'inception'"),
        (["size=3"], "recipe.size: unknown field"),
        (["crop=wide"], "recipe.crop"),
        (["crop_pct=0.9", "resize=256"], "crop_pct and resize state the same"),
        (["scale=1/0"], "recipe.scale"),
        (["channels=grey"], "mean has 3 values, but channels is grey: 1 was expected"),
        (["fit=letterbox", "crop=224", "resize=200"], "crop [224, 224] is larger than resize (200, 200)"),
    ],
)
def test_a_recipe_on_the_command_line_that_is_not_valid(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "resnet18", *(word for one in words for word in ("--recipe", one))]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "hint: " in said
    assert "Traceback" not in said


def test_what_show_prints_is_a_spec_that_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        "models: [{name: demo, config: {classifier: 'instance_group { count: 2 } dynamic_batching {}'}}, "
        "{name: other, architecture: resnet18}]"
    )
    shown: list[str] = []
    for _ in range(2):
        assert main(["show", "--spec", str(path)]) == 0
        shown.append(capsys.readouterr().out)
        models = yaml.safe_load(shown[-1])["models"]
        for model in models:
            del model["classes"]  # how many there are
        path.write_text(yaml.safe_dump({"models": models}))
    assert shown[0] == shown[1]
    assert models[0]["instances"]["classifier"] is models[0]["max_queue_delay_microseconds"] is None
    assert (models[1]["instances"]["classifier"], models[1]["max_queue_delay_microseconds"]) == (1, 500)


def test_build_prints_a_word_per_file_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build-repo", "demo", "--no-verify", "-r", str(tmp_path / "repo")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("create    ") and Path(line.split()[1]).is_file() for line in lines)
    assert main([*arguments, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["version"], set(entry["files"].values())) == (1, {"identical"})


# What cannot be written.


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["show", "demo"], ["--help"], ["show", "--help"], ["--version"]])
def test_a_full_output_is_one_error(arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "generator", "-q", *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    error, hint = run.stderr.splitlines()
    assert (run.returncode, error) == (1, "error: nothing more can be written: No space left on device")
    assert hint.startswith("hint: free disk space where the output goes")


@pytest.mark.parametrize("arguments", [["show", "demo"], ["show", "resnet5"]])
def test_where_no_error_can_be_written_the_exit_code_says_it(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "generator", *arguments], stdout=subprocess.PIPE, stderr=full, check=False
        )
    assert run.returncode == 1


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    command = f"{sys.executable} -m generator show demo | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr


# Completion.


def test_the_shell_completes_commands_and_models() -> None:
    classifiers = torchvision.models.list_models(module=torchvision.models)
    detectors = torchvision.models.list_models(module=torchvision.models.detection, exclude="*rcnn*")
    assert set(complete_models("")) == {"demo", "demo-detector", *classifiers, *detectors}
    assert complete_models("ssd") == ["ssd300_vgg16", "ssdlite320_mobilenet_v3_large"]
    assert complete_models("resnet1") == ["resnet18", "resnet101", "resnet152"]
    words = {"_TRTGEN_COMPLETE": "complete_bash", "COMP_WORDS": "trtgen build-repo mobilenet_v2", "COMP_CWORD": "2"}
    run = subprocess.run(
        [Path(sys.prefix) / "bin" / "trtgen"], env={**os.environ, **words}, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["mobilenet_v2"]
    assert "--install-completion" in help_of("--help")


def test_a_model_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_onnx(tmp_path / "net.onnx", size=224)
    (tmp_path / "models.yaml").write_text(
        "models:\n- {name: broken, onnx: none.onnx}\n- {name: net, onnx: net.onnx, recipe: imagenet, labels: index}\n"
        "- {name: unlabelled, onnx: net.onnx, recipe: imagenet}\n"
    )
    arguments = ["build-repo", "--spec", "models.yaml", "--no-verify", "-r", "repo"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "repo/net/trtgen.json" in captured.out
    assert captured.err.count("error: ") == 2
    summary = captured.err[captured.err.index("! 2 of 3 models failed:") :].splitlines()
    assert summary[1].startswith("!   broken: ")
    assert "none.onnx cannot be read" in summary[1]
    assert summary[2] == "!   unlabelled: unlabelled has 4 classes and no names for them"
    assert main([*arguments, "--json"]) == 1
    broken, net, unlabelled = json.loads(capsys.readouterr().out)
    assert (net["name"], net["version"], set(net["files"].values())) == ("net", 1, {"identical"})
    assert "none.onnx cannot be read" in broken["error"]
    assert "--labels FILE" in unlabelled["hint"]
    assert main(["export", "--spec", "models.yaml", "--target", "tensorrt-10"]) == 1
    assert capsys.readouterr().out == "exported/net/model.onnx\n"


def test_one_model_that_fails_is_no_summary_and_still_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["build-repo", "none.onnx", "--json"]) == 1
    captured = capsys.readouterr()
    assert "models failed" not in captured.err
    assert json.loads(captured.out)[0]["name"] == "none"


def test_a_name_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_onnx(tmp_path / "net.onnx", size=224)
    told = ["--recipe", "imagenet", "--labels", "index"]
    assert main(["export", "net.onnx", "--name", "birds", "--target", "tensorrt-10", *told]) == 0
    assert capsys.readouterr().out == "exported/birds/model.onnx\n"
    assert main(["build-repo", "--onnx", "net.onnx", "--name", "birds", *told, "--no-verify", "-r", "repo"]) == 0
    assert sorted(path.name for path in (tmp_path / "repo").glob("birds*")) == [
        "birds", "birds_classifier", "birds_preprocess",
    ]  # fmt: skip
    assert main(["build-repo", "net.onnx", "demo", "--name", "birds"]) == 1
    assert "--name birds names one model, but 2 are given: net.onnx, demo" in capsys.readouterr().err
    resnet, demo = (make_spec([name], name="mine")[0] for name in ("resnet18", "demo"))
    assert (resnet.name, resnet.registry_name, demo.name, demo.source) == ("mine", "resnet18", "mine", "demo")
    given = make_spec(["resnet18"], name="mine", architecture="resnet50")[0]
    assert given.registry_name == "resnet50"


# Hints: the library's words, with the options or the command line that go with them.


def test_every_field_that_has_another_name_is_an_option_of_some_command() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    names = {parameter.name for command in commands for parameter in command.params}
    assert set(hints._PARAMETERS.values()) <= names


@pytest.mark.parametrize(
    ("asked", "advice", "said"),
    [
        (["show", "demo"], {"fields": {"classes": 10}}, "do this (--classes 10)"),
        (
            ["show", "demo"],
            {"fields": {"labels": None, "recipe": "imagenet"}},
            "do this (--labels FILE, --recipe imagenet)",
        ),
        (["show", "demo"], {"fields": {"batch.max": None}}, "do this (--max-batch N)"),
        (["show", "demo"], {"fields": {"raw": True}}, "do this (in a file: --spec FILE, which trtgen init writes)"),
        (["show", "--spec", "models.yaml"], {"fields": {"raw": True}}, "do this"),
        (
            ["list", "-r", "repo"],
            {"fields": {"classes": 10, "repository": Path("a b")}},
            "do this (--repository 'a b')",
        ),
        (["list", "-r", "repo"], {"command": ("init",)}, "do this: trtgen init"),
        (
            ["list", "-r", "repo"],
            {
                "command": ("build-repo", "my net.onnx"),
                "fields": {"replace": True, "repository": Path("model_repository")},
            },
            "do this: trtgen build-repo 'my net.onnx' --replace",
        ),
        (
            ["show", "demo", "--max-batch", "2", "--target", "onnxruntime"],
            {"command": ("export",), "fields": {"target": "tensorrt-10"}},
            "do this: trtgen export demo --target tensorrt-10 --max-batch 2",
        ),
        (["show", "--onnx", "a.onnx", "--onnx", "b.onnx"], {"command": ("export",)}, "--onnx a.onnx --onnx b.onnx"),
    ],
)
def test_a_hint_gets_the_options_of_the_command_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], advice: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.yaml").write_text("models: [{name: demo}]")
    main(asked)
    hint = hints.describe_hint(TrtgenError("it failed", hint="do this", **advice))
    assert hint.endswith(said)
    assert hint.startswith("do this")
