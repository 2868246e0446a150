"""`trtgen doctor`: every rule finds what is broken, on its line, and nothing in what is right."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from generator.cli import main
from generator.doctor.examine import examine
from generator.doctor.finding import Finding
from generator.doctor.fix import find_fixes
from generator.doctor.repository import read_repository
from generator.plan.library import TensorRTVersion
from generator.rules import RULES
from tests.doctor_cases import CASES, CODE, NETWORK, OWN, PYTHON, Case, Files, find_line, graph, write_files


def find(files: Files, root: Path, case: Case, name: str = "net") -> list[Finding]:
    write_files(files, root, name)
    options: dict[str, Any] = dict(case.options)
    if "tensorrt" in options:
        options["tensorrt"] = TensorRTVersion.parse(options["tensorrt"])
    return examine(read_repository(root), case.release, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_broken_is_found_on_its_line_and_what_is_right_is_not(case: Case, tmp_path: Path) -> None:
    broken = find(case.broken, tmp_path / "broken", case)
    found = [finding for finding in broken if finding.rule.id == case.rule]
    assert found, [(one.rule.id, one.cause) for one in broken]
    place = (tmp_path / "broken" / case.at.replace("@", "net"), find_line(case))
    if place[1] is None and case.at.endswith("config.pbtxt"):
        assert [one.path for one in found] == [place[0]] * len(found)
    else:
        assert place in [(one.path, one.line) for one in found], found
    assert not any("{" in one.cause + one.fix for one in found)
    right = find(case.right, tmp_path / "right", case)
    assert [(one.rule.id, one.cause) for one in right if one.severity == "error" or one.rule.id == case.rule] == []


def test_every_rule_that_files_show_has_a_case() -> None:
    shown = {rule.id for rule in RULES if {"files", "onnx", "plan", "python"} & {*rule.seen_in}}
    elsewhere = {"layout-unreadable", "python-newer-than-ours"}
    assert {case.rule for case in CASES} == shown - elsewhere


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command; return its exit code and what it wrote to both streams."""
    code = main(["doctor", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Two models: an error on line 3, and a warning about a key that must not be printed."""
    root = tmp_path / "models"
    key = 'parameters { key: "AWS_SECRET_ACCESS_KEY" value { string_value: "hunter2" } }\n'
    write_files({"@/config.pbtxt": OWN + key + "max_queue: hunter2\n", "@/1/": ""}, root, "keys")
    write_files({"@/config.pbtxt": PYTHON, "@/1/model.py": "import torch\n" + CODE.format("pass")}, root, "net")
    return root


class TestFormats:
    def test_text_names_place_rule_cause_and_fix(self, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = run(capsys, broken)
        assert (code, err) == (1, "")
        assert out == (
            f"{broken}/keys/config.pbtxt:6: error config-syntax\n"
            '    its config.pbtxt cannot be read: line 6: Message type "inference.ModelConfig" has no field named '
            '"max_queue". (misspelt, or of a release after 26.08, the last one known)\n'
            "    fix: correct keys/config.pbtxt\n"
            f"{broken}/net/1/model.py:1: warning python-import-absent\n"
            "    it imports torch, which is not part of tritonserver's image\n"
            "    fix: install it in an image of your own (pip install torch), or name an environment in "
            "EXECUTION_ENV_PATH\n"
            "1 error, 1 warning in 2 models, for release 26.10\n"
        )

    def test_json_has_a_version(self, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = run(capsys, broken, "--format", "json")
        found = json.loads(out)
        assert (code, found["version"], found["models"], found["release"]) == (1, 1, 2, "26.10")
        assert {key: found["findings"][1][key] for key in ("rule", "severity", "model", "file", "line")} == {
            "rule": "python-import-absent",
            "severity": "warning",
            "model": "net",
            "file": f"{broken}/net/1/model.py",
            "line": 1,
        }

    def test_sarif_is_true_to_its_schema(
        self, broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The models of pydantic-sarif are made of the schema of SARIF 2.1.0 and refuse what it does not have."""
        schema = importlib.import_module("pydantic_sarif.model")
        monkeypatch.chdir(broken.parent)
        code, out, _ = run(capsys, "models", "--format", "sarif")
        document = json.loads(out)
        schema.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(document)
        [result] = document["runs"]
        places = [one["locations"][0]["physicalLocation"] for one in result["results"]]
        assert (code, [place["artifactLocation"]["uri"] for place in places]) == (
            1,
            ["models/keys/config.pbtxt", "models/net/1/model.py"],
        )
        assert places[0]["region"] == {"startLine": 6}
        ids = [rule["id"] for rule in result["tool"]["driver"]["rules"]]
        assert [ids[one["ruleIndex"]] for one in result["results"]] == [one["ruleId"] for one in result["results"]]
        document["runs"][0]["results"][0]["level"] = "fatal"
        with pytest.raises(ValidationError):
            schema.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(document)

    def test_github_escapes_what_would_end_a_command(self, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = run(capsys, broken, "--format", "github")
        assert code == 1
        assert out.startswith(f"::error file={broken}/keys/config.pbtxt,line=6,title=config-syntax::its config.pbtxt ")
        assert out.splitlines()[1].startswith(f"::warning file={broken}/net/1/model.py,line=1,")

    def test_names_control_neither_a_terminal_nor_a_workflow(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Both are somebody else's: a folder's name, and what a configuration says."""
        write_files(
            {"@/config.pbtxt": OWN + 'name: "a\\033[2J\\n::error::b"', "@/1/": ""}, tmp_path, "net\x1b[2J\n::x,y"
        )
        _, text, _ = run(capsys, tmp_path)
        _, github, _ = run(capsys, tmp_path, "--format", "github")
        assert "\x1b" not in text + github
        assert not any(line.lstrip().startswith(("::x", "::error::b")) for line in (text + github).splitlines())
        assert text.startswith(f"{tmp_path}/net\\x1b[2J\\n::x,y: warning layout-name-characters\n")
        assert github.startswith(f"::warning file={tmp_path}/net\\x1b[2J%0A%3A%3Ax%2Cy,title=layout-name-characters::")

    def test_a_uri_is_one(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_files({"@/config.pbtxt": "backend 5", "@/1/": ""}, tmp_path, "two words")
        _, out, _ = run(capsys, tmp_path, "--format", "sarif")
        [result] = json.loads(out)["runs"][0]["results"][-1:]
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri == f"{tmp_path}/two%20words/config.pbtxt"

    def test_an_output_that_lacks_a_character(self, tmp_path: Path) -> None:
        write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "m\u00f6del")
        command = [sys.executable, "-m", "generator", "doctor", str(tmp_path)]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (made.returncode, made.stderr) == (0, "")
        assert "the name 'm\\xf6del' holds characters" in made.stdout

    @pytest.mark.parametrize("format_", ["text", "json", "sarif", "github"])
    def test_keys_are_not_printed(
        self, broken: Path, format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = broken / "keys" / "config.pbtxt"
        path.write_text(path.read_text().replace("max_queue: hunter2", "instance_group { kind: hunter2 }"))
        _, out, _ = run(capsys, broken, "--format", format_)
        assert "has no value named ***" in out  # it quotes what stands there
        log = tmp_path / "log"
        words = "Internal: cannot reach s3 with AWS_SECRET_ACCESS_KEY=hunter2, --http-restricted-api=health:key=hunter2"
        words += ", Authorization: Bearer hunter2"
        log.write_text(f"E1122 12:31:28.507750 1 model_lifecycle.cc:642] failed to load 'm' version 1: {words}\n")
        _, more, _ = run(capsys, "--log", log, "--format", format_)
        assert "cannot reach s3" in more
        assert "hunter2" not in out + more


class TestExitCodes:
    def test_clean_is_0(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "net")
        assert run(capsys, tmp_path) == (0, "nothing found in 1 model, for release 26.10\n", "")

    def test_warnings_count_where_they_are_asked_for(self, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(capsys, broken, "--ignore", "config-syntax")[0] == 0
        assert run(capsys, broken, "--ignore", "config-syntax", "--fail-on", "warning")[0] == 1
        assert run(capsys, broken, "--ignore", "config-syntax", "--fail-on", "warning", "--format", "sarif")[0] == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "one of REPOSITORY and --log was expected"),
            ([".", "--log", "x"], "one of REPOSITORY and --log was expected"),
            ([".", "--release", "26"], "'26' is not a release"),
            ([".", "--release", "26.13"], "'26.13' is not a release"),
            ([".", "--tensorrt", "ten"], "'ten' is not a TensorRT version"),
            ([".", "--gpu", "h100"], "'h100' is not a compute capability"),
            ([".", "--ignore", "config-sintax"], "there is no rule config-sintax"),
            ([".", "--write"], "--write applies what --fix shows"),
            ([".", "--fix", "--format", "json"], "--fix goes with"),
            (["--log", "absent.log"], "absent.log cannot be read: No such file"),
            (["--format", "xml", "."], "'xml' is not one of"),
        ],
    )
    def test_wrong_usage_is_2(
        self, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "net").mkdir()
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert "hint: " in err


def deep(root: Path) -> None:
    write_files({"@/config.pbtxt": OWN, "@/1/": ""}, root / "models", "net")


def in_a_project(root: Path) -> None:
    deep(root)
    (root / "src" / "package").mkdir(parents=True)


class TestUnusable:
    @pytest.mark.parametrize(
        ("make", "message", "hint"),
        [
            (lambda root: root.mkdir(), "holds no folder, a folder for each model was expected", "--model-repository"),
            (lambda root: root.write_text("x"), "cannot be read: Not a directory", "--model-repository"),
            (lambda _: None, "cannot be read: No such file", "--model-repository"),
            (lambda root: root.symlink_to(root), "cannot be read: Too many levels", "--model-repository"),
            (
                lambda root: write_files({"@/config.pbtxt": OWN, "@/1/": ""}, root.parent, root.name),
                "is one model: it holds config.pbtxt itself",
                "give the folder above it: {parent}",
            ),
            (
                lambda root: write_files({"@/1/model.onnx": b""}, root.parent, root.name),
                "is one model: its folders are versions",
                "give the folder above it: {parent}",
            ),
            (deep, "holds no model: they are one level deeper", "give the folder that holds them: {root}/models"),
            (in_a_project, "holds no model: they are one level", "give the folder that holds them: {root}/models"),
        ],
    )
    def test_is_said_with_the_folder_that_is_meant(
        self,
        make: Callable[[Path], object],
        message: str,
        hint: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        root = tmp_path / "given"
        make(root)
        code, out, err = run(capsys, root)
        assert (code, out) == (2, "")
        assert f"error: {root} {message}" in err
        assert hint.format(root=root, parent=tmp_path) in err


def find_rules(root: Path, release: str = "26.10") -> list[tuple[str, str]]:
    return [(one.rule.id, one.cause) for one in examine(read_repository(root), release)]


class TestHostileFiles:
    def test_garbage_gigabytes_loops_and_pipes(self, tmp_path: Path) -> None:
        for name in ("garbage", "huge", "pipe", "folder", "device", "nested"):
            (tmp_path / name).mkdir()
        (tmp_path / "garbage" / "config.pbtxt").write_bytes(bytes(range(256)) * 8)
        with (tmp_path / "huge" / "config.pbtxt").open("wb") as file:
            file.truncate(3 << 30)
        os.mkfifo(tmp_path / "pipe" / "config.pbtxt")
        (tmp_path / "folder" / "config.pbtxt").mkdir()
        (tmp_path / "device" / "config.pbtxt").symlink_to("/dev/zero")
        (tmp_path / "nested" / "config.pbtxt").write_text("model_warmup { inputs { " * 5000)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        write_files({"@/config.pbtxt": OWN, "@/1/": "", "@/2": Path("2")}, tmp_path, "looped")
        files: Files = {"@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}', "@/1/model.onnx": Path("model.onnx")}
        write_files(files, tmp_path, "circle")
        found = dict(find_rules(tmp_path))
        causes = "\n".join(cause for _, cause in find_rules(tmp_path))
        assert set(found) == {"config-syntax", "layout-no-model-file"}
        assert "it is no text: byte 128 is not UTF-8" in causes
        assert "3,221,225,472 bytes, a model configuration has a few thousand" in causes
        assert causes.count("it is not a regular file") == 3
        assert len(find_rules(tmp_path)) == 7

    @pytest.mark.parametrize("name", ["model.onnx", "model.plan"])
    def test_gigabytes_of_nothing_are_no_model(self, name: str, tmp_path: Path) -> None:
        write_files({"@/config.pbtxt": NETWORK, f"@/1/{name}": b""}, tmp_path, "net")
        with (tmp_path / "net" / "1" / name).open("wb") as file:
            file.truncate(8 << 30)
        before = time.process_time()
        assert [rule for rule, _ in find_rules(tmp_path)] == [{"model.onnx": "onnx-damaged"}.get(name, "plan-damaged")]
        assert time.process_time() - before < 2

    def test_what_may_not_be_read_is_said(self, tmp_path: Path) -> None:
        """Where root runs the tests, another user reads: root may read everything."""
        write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "config")
        write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "folder")
        write_files({"@/config.pbtxt": NETWORK, "@/1/model.onnx": graph()}, tmp_path, "graph")
        write_files(
            {"@/config.pbtxt": NETWORK + 'backend: "onnxruntime"', "@/1/model.onnx": graph()}, tmp_path, "version"
        )
        closed = [
            tmp_path / "version" / "1",
            tmp_path / "config" / "config.pbtxt",
            tmp_path / "folder",
            tmp_path / "graph" / "1" / "model.onnx",
        ]
        for path in closed:
            path.chmod(0)
        reopened = [parent for parent in (tmp_path, *tmp_path.parents) if parent.stat().st_mode & 0o5 != 0o5]
        modes = {parent: parent.stat().st_mode for parent in reopened}
        user = os.geteuid()
        try:
            for parent in reopened:
                parent.chmod(modes[parent] | 0o55)
            if user == 0:
                os.seteuid(65534)
            found = examine(read_repository(tmp_path), "26.10")
        finally:
            os.seteuid(user)
            for parent, mode in modes.items():
                parent.chmod(mode)
            for path in closed:
                path.chmod(0o755)
        unread = {one.path.relative_to(tmp_path).as_posix(): one.cause for one in found}
        assert {one.rule.id for one in found} == {"layout-unreadable"}
        assert list(unread) == ["config/config.pbtxt", "folder/config.pbtxt", "graph/1/model.onnx", "version/1"]
        assert all("(Permission denied)" in cause for cause in unread.values())

    def test_model_py_is_never_run(self, tmp_path: Path) -> None:
        proof = tmp_path / "ran"
        code = f"open({str(proof)!r}, 'w').write('\\d')\n" + CODE.format("pass")  # an escape that Python warns of
        write_files({"@/config.pbtxt": PYTHON, "@/1/model.py": code}, tmp_path / "models", "net")
        before = set(sys.modules)
        assert find_rules(tmp_path / "models") == []
        assert not proof.exists()
        assert not any("net" in name.split(".") for name in set(sys.modules) - before)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(case=st.sampled_from(CASES), data=st.data())
    def test_nothing_in_a_configuration_or_model_is_a_traceback(
        self, case: Case, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Pieces of a case's files are cut out, doubled or replaced."""
        root = tmp_path_factory.mktemp("torn")
        write_files(case.broken, root, "net")
        paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        path = data.draw(st.sampled_from(paths)) if paths else None
        if path is not None:
            content = path.read_bytes()
            start, stop = sorted(data.draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
            piece = data.draw(
                st.sampled_from([b"", content[start:stop] * 2, b"\0", b"-9", b'"' + b"x" * 5000 + b'"', b"}{"])
            )
            path.write_bytes(content[:start] + piece + content[stop:])
        found = examine(read_repository(root), case.release)
        assert all(one.cause and one.fix for one in found)
        assert all(one.diff() for one in find_fixes(read_repository(root), found))

    def test_python_of_another_release(self, tmp_path: Path) -> None:
        """Python 3.10, of releases up to 24.11, knows neither `except*` nor parameters of types."""
        code = CODE.format("pass") + "try:\n    pass\nexcept* OSError:\n    pass\n"
        write_files({"@/config.pbtxt": PYTHON, "@/1/model.py": code}, tmp_path, "net")
        assert [rule for rule, _ in find_rules(tmp_path, "24.10")] == ["python-raised"]
        if sys.version_info >= (3, 11):
            assert find_rules(tmp_path, "26.10") == []
        (tmp_path / "net" / "1" / "model.py").write_text(CODE.format("pass") + "type Numbers = list[int]\n")
        found = [rule for rule, _ in find_rules(tmp_path, "26.10")]
        assert found == ([] if sys.version_info >= (3, 12) else ["python-newer-than-ours"])

    def test_a_configuration_of_2019_and_one_of_the_future(self, tmp_path: Path) -> None:
        old = 'name: "old"\nplatform: "caffe2_netdef"\ninput [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]\n'
        write_files({"@/config.pbtxt": old, "@/1/model.netdef": b"x"}, tmp_path, "old")
        future = OWN + "ensemble_scheduling { max_inflight_requests: 4 }\nteleport { speed: 3 }\n"
        write_files({"@/config.pbtxt": future, "@/1/": ""}, tmp_path, "future")
        found = dict(find_rules(tmp_path))
        assert set(found) == {"platform-unknown", "config-syntax"}
        assert 'no field named "teleport". (misspelt, or of a release after 26.08, the ' in found["config-syntax"]
        path = tmp_path / "future" / "config.pbtxt"
        path.write_text(
            path.read_text().replace("teleport { speed: 3 }\n", "").replace('backend: "own"', 'platform: "ensemble"')
        )
        assert "max_inflight_requests came with 25.11" in dict(find_rules(tmp_path, "25.10"))["config-field-newer"]
        assert "config-field-newer" not in dict(find_rules(tmp_path, "25.11"))


def test_a_release_without_a_row_is_judged_by_the_last_known_one_and_that_is_said(tmp_path: Path) -> None:
    write_files(
        {"@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}', "@/1/model.onnx": graph(opset=99)}, tmp_path, "net"
    )
    [(_, of_later)], [(_, of_earlier)] = find_rules(tmp_path, "99.01"), find_rules(tmp_path, "25.03")
    assert of_later.endswith("(onnxruntime 1.28.0, release 26.08, the last one known)")
    assert of_earlier.endswith("the server knows up to 21 (onnxruntime 1.20.1, release 25.01)")


def test_thousands_of_models_take_seconds(tmp_path: Path) -> None:
    """benchmarks/doctor_models.py measures; here only what is out of all proportion fails."""
    for number in range(1000):
        write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, f"net{number}")
    before = time.process_time()
    assert find_rules(tmp_path) == []
    assert time.process_time() - before < 10


FAILED = "failed to load '{}' version 1: Internal: No module named '{}'"
NEW = '2026-11-22T12:31:28Z E 14638 model_lifecycle.cc:642] "{}"'
OLD = "E1122 12:31:28.507750 14638 model_lifecycle.cc:642] {}"


class TestLogs:
    @pytest.mark.parametrize(
        "log",
        [
            "\n".join((NEW.format(FAILED.format("a", "x")), OLD.format(FAILED.format("b", "y")))),  # two servers
            "\x1b[31m" + OLD.format(FAILED.format("a", "x")) + "\x1b[0m\n" + NEW.format(FAILED.format("b", "y")),
            "triton-1  | "
            + OLD.format(FAILED.format("a", "x"))
            + "\ntriton-1  | "
            + NEW.format(FAILED.format("b", "y")),
            "2026-11-22T12:31:28.5Z "
            + OLD.format(FAILED.format("a", "x"))
            + "\r\n"
            + NEW.format(FAILED.format("b", "y")),
            # cut in the middle
            OLD.format(FAILED.format("a", "x")) + "\n" + NEW.format(FAILED.format("b", "y"))[:-1],
            "models that was cut\n" + OLD.format(FAILED.format("a", "x")) + "\n" + NEW.format(FAILED.format("b", "y")),
        ],
    )
    def test_are_read_as_they_come(self, log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "log").write_text(log)
        code, out, _ = run(capsys, "--log", tmp_path / "log", "--format", "json")
        found = [(one["model"], one["rule"], one["fix"]) for one in json.loads(out)["findings"]]
        assert (code, found) == (1, [("a", "python-import", "pip install x"), ("b", "python-import", "pip install y")])

    PARSER = "[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:5: {}"
    UNREAD = OLD.format("Poll failed for model directory 'a': failed to read text proto from /m/a/config.pbtxt")

    @pytest.mark.parametrize("prefix", ["", "triton-1  | ", "\x1b[36mtriton-1  | \x1b[0m", "2026-11-22T12:31:28.5Z "])
    def test_what_the_parser_said_is_found_behind_a_prefix(
        self, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = [self.PARSER.format("oh"), self.PARSER.format("oh"), self.UNREAD]  # two servers on one repository
        (tmp_path / "log").write_text("".join(f"{prefix}{line}\n" for line in lines))
        _, out, _ = run(capsys, "--log", tmp_path / "log")
        assert "config.pbtxt cannot be read: line 1, column 5: oh\n" in out

    def test_a_log_without_its_beginning_is_read_from_its_table(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = (
            "+-------+---------+----------------------------------------------------------+",
            "| Model | Version | Status                                                   |",
            "+-------+---------+----------------------------------------------------------+",
            "| a     | 1       | UNAVAILABLE: Internal: ModuleNotFoundError: No module named 'x' |",
            "|       |         |                                                          |",
            "|       |         | At:                                                      |",
            "|       |         |   /models/a/1/model.py(7): <module>                      |",
            "| b     | 1       | READY                                                    |",
            "| c     | 1       | UNAVAILABLE: unloaded                                    |",
            "+-------+---------+----------------------------------------------------------+",
        )
        end = "error: creating server: Internal - failed to load all models"
        (tmp_path / "log").write_text("".join(f"triton-1  | {line}\n" for line in (*table, end)))
        code, out, _ = run(capsys, "--log", tmp_path / "log", "--format", "json")
        found = [(one["model"], one["rule"], one["line"]) for one in json.loads(out)["findings"]]
        assert (code, found) == (1, [("a", "python-import", 4)])
        (tmp_path / "log").write_text(end)
        code, out, _ = run(capsys, "--log", tmp_path / "log")
        assert code == 1
        assert "log:1: error unknown-words\n    failed to load all models, and the log does not say which" in out
        (tmp_path / "log").write_text(self.UNREAD)
        assert "config.pbtxt cannot be read: the log does not say where" in run(capsys, "--log", tmp_path / "log")[1]

    def test_words_that_no_rule_knows_are_given(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "log").write_text(OLD.format("failed to load 'a' version 1: Internal: the moon is full"))
        code, out, _ = run(capsys, "--log", tmp_path / "log")
        assert code == 1
        assert "log:1: error unknown-words\n    Internal: the moon is full" in out

    def test_a_log_without_a_failure(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        text = NEW.format("successfully loaded 'a'")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run(capsys, "--log", "-") == (0, "nothing found\n", "")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[INFO] nginx started\nerror: no such upstream\n",
            "\x00\xff" * 100,
            "E1122 12:31:28.507750 1 pod.go:12] bad\n",
        ],
    )
    def test_a_log_of_another_program_is_refused(
        self, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "log").write_text(text)
        code, out, err = run(capsys, "--log", tmp_path / "log")
        assert (code, out) == (2, "")
        assert "is not a log of tritonserver" in err


class TestFix:
    EXAMPLES: tuple[tuple[str, str, Files], ...] = (
        # broken, right, what else lies there
        (
            'backend: "own" # kept\nmax_batch_size: 8\ninstance_group {\n  kind: KIND_CPU\n  gpus: [ 0, 1 ]\n}\n',
            'backend: "own" # kept\nmax_batch_size: 8\ninstance_group {\n  kind: KIND_CPU\n}\n',
            {},
        ),
        (
            'backend: "own"\ninput [ { name: "X", data_type: TYPE_FP32, format: FORMAT_NCHW, dims: [ 4 ] } ]\n',
            'backend: "own"\ninput [ { name: "X", data_type: TYPE_FP32, dims: [ 4 ] } ]\n',
            {},
        ),
        (
            NETWORK,
            f'backend: "onnxruntime"\ndefault_model_filename: "best.onnx"\n{NETWORK}',
            {"@/1/best.onnx": graph()},
        ),
        (
            f'backend: "onnxruntime"{NETWORK}',
            f'default_model_filename: "best.onnx"\nbackend: "onnxruntime"{NETWORK}',
            {"@/1/best.onnx": graph()},
        ),
        (
            f'backend: "onnxruntime"{NETWORK}'.replace("dims: 4", "dims: [ -1, 4 ]"),
            f'backend: "onnxruntime"{NETWORK}'.replace("dims: 4", "dims: [ 4 ]"),
            {"@/1/model.onnx": graph()},
        ),
        (
            f'backend: "onnxruntime"{NETWORK}'.replace("dims: 4 }\no", "dims: 1 dims: 4 }\no"),
            f'backend: "onnxruntime"{NETWORK}'.replace("dims: 4 }\no", "dims: [ 4 ]  }\no"),
            {"@/1/model.onnx": graph()},
        ),
        (
            f'backend: "onnxruntime"{NETWORK}'.replace("FP32", "INT8", 1),
            f'backend: "onnxruntime"{NETWORK}',
            {"@/1/model.onnx": graph()},
        ),
        (
            OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 1 label_filename: "labels.txt" }',
            OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 1 label_filename: "1/Labels.txt" }',
            {"@/1/Labels.txt": "one"},
        ),
    )

    @pytest.mark.parametrize(("before", "after", "more"), EXAMPLES)
    def test_what_has_one_right_answer_is_shown_and_written(
        self, before: str, after: str, more: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_files({"@/config.pbtxt": before, "@/1/": "", **more}, tmp_path, "net")
        path = tmp_path / "net" / "config.pbtxt"
        code, out, err = run(capsys, tmp_path, "--fix")
        assert (code, path.read_text()) == (1, before)
        assert f"--- {path}\n+++ {path}\n@@ " in out
        assert "--write applies this" in err
        code, out, err = run(capsys, tmp_path, "--fix", "--write")
        assert path.read_text() == after
        assert (code, err) == (0, f"* wrote {path}\n")
        assert out.endswith("nothing found in 1 model, for release 26.10\n")
        assert list(path.parent.glob(".config*")) == []

    def test_a_step_without_a_version_gets_the_newest(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        case = next(case for case in CASES if case.name == "ensemble-no-version")
        write_files(case.broken, tmp_path, "net")
        assert run(capsys, tmp_path, "--fix", "--write")[0] == 0
        assert 'model_name: "net_a" model_version: -1' in (tmp_path / "net" / "config.pbtxt").read_text()

    @pytest.mark.parametrize(
        ("config", "more"),
        [
            (NETWORK, {"@/1/a.onnx": graph(), "@/1/b.onnx": graph()}),
            (NETWORK, {"@/1/a.onnx": graph(), "@/1/a.plan": b""}),
            (f'backend: "onnxruntime"{NETWORK}'.replace("dims: 4", "dims: [ 4, 1 ]"), {"@/1/model.onnx": graph()}),
            (
                OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 1 label_filename: "labels.txt" }',
                {"@/1/labels.txt": "one", "@/more/labels.txt": "two"},
            ),
        ],
    )
    def test_what_has_several_is_left(
        self, config: str, more: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_files({"@/config.pbtxt": config, "@/1/": "", **more}, tmp_path, "net")
        code, out, err = run(capsys, tmp_path, "--fix", "--write")
        assert (code, err) == (1, "nothing of what was found has one right answer\n")
        assert "@@" not in out
        assert (tmp_path / "net" / "config.pbtxt").read_text() == config

    def test_a_diff_hides_keys(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        key = 'parameters { key: "api_key" value { string_value: "hunter2" } }\n'
        config = key + 'backend: "own"\ninstance_group { kind: KIND_CPU gpus: 0 }\n'
        write_files({"@/config.pbtxt": config, "@/1/": ""}, tmp_path, "net")
        _, out, _ = run(capsys, tmp_path, "--fix")
        assert 'string_value: "***"' in out
        assert "hunter2" not in out

    def test_what_cannot_be_written_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_files(
            {"@/config.pbtxt": 'instance_group { kind: KIND_CPU gpus: 0 }\nbackend: "own"', "@/1/": ""}, tmp_path, "net"
        )

        def refuse(*_: object) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("generator.doctor.fix.write_temporary", refuse)
        code, _, err = run(capsys, tmp_path, "--fix", "--write")
        assert code == 2
        assert re.search("config.pbtxt cannot be written: No space left on device\nhint: ", err)
