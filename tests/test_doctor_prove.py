"""`trtgen doctor --prove`: a real tritonserver judges every case, runs nothing of it, and agrees with doctor."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from generator.cli import main
from generator.doctor.examine import examine
from generator.doctor.prove import SERVER_RELEASE, Proof, compare, prove
from generator.doctor.repository import read_repository
from generator.doctor.stand_in import make_stand_in
from generator.rules import BY_ID
from tests.doctor_cases import CASES, CODE, OWN, PYTHON, Case, write_files

# A blank in a path, and a file that is not copied.
NOT_JUDGED = {"blank_broken net", "label-outside_broken"}


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """One server on all cases, broken and right, and on a model that would write a file."""
    root = tmp_path_factory.mktemp("prove") / "models"
    for case in CASES:
        write_files(case.broken, root, f"{case.name}_broken")
        write_files(case.right, root, f"{case.name}_right")
    code = f"open({str(root.parent / 'ran')!r}, 'w')\n" + CODE.format("pass")
    config = PYTHON + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/nowhere" } }\ninstance_group '
    write_files({"@/config.pbtxt": config + "{ kind: KIND_GPU gpus: 0 }", "@/1/model.py": code}, root, "hostile")
    (root / "hostile" / "1" / "libtriton_python.so").write_bytes(b"theirs")
    before = sorted(root.rglob("*"))
    made = prove(read_repository(root))
    assert sorted(root.rglob("*")) == before
    assert not (root.parent / "ran").exists()
    return made


@pytest.mark.server
class TestCases:
    def test_doctor_and_the_server_agree_on_every_case(self, proof: Proof) -> None:
        assert [(one.model, one.rule.id, one.cause) for one in proof.disagreements] == []
        assert set(proof.not_judged) == NOT_JUDGED
        assert len(proof.agreed) > 200

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_the_server_refuses_what_is_broken_and_takes_what_is_right(self, case: Case, proof: Proof) -> None:
        rule = BY_ID[case.rule]
        expected = case.rule if "core" in rule.seen_in and rule.holds_in(SERVER_RELEASE) else None
        name, right = f"{case.name}_broken", f"{case.name}_right"
        if expected and name not in NOT_JUDGED:
            assert proof.agreed[name] in {expected, *(["backend-unstated"] if case.name == "stray" else [])}
        if right in proof.agreed and case.name not in LATER:
            assert proof.agreed[right] is None

    def test_a_model_py_is_judged_and_not_run(self, proof: Proof) -> None:
        assert proof.agreed["hostile"] is None


# Right in the release that they are for, not in the server's.
LATER = {"metrics-incomplete"}


def test_a_disagreement_is_one_in_both_directions(tmp_path: Path) -> None:
    log = (
        "E1122 12:31:28.507750 1 model_lifecycle.cc:642] failed to load 'a' version 1: Internal: the moon is full\n"
        "I1122 12:31:28.507750 1 model_lifecycle.cc:839] \"successfully loaded 'b'\"\n"
        "E1122 12:31:28.507750 1 model_lifecycle.cc:642] failed to load 'c' version 1: Invalid argument: "
        "'max_batch_size' must be non-negative value for c\n"
    )
    write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "a")
    for name in "bcd":
        write_files({"@/config.pbtxt": 'backend: "own"\nmax_batch_size: -1', "@/1/": ""}, tmp_path, name)
    repository = read_repository(tmp_path)
    made = compare(repository, examine(repository, SERVER_RELEASE), log, {})
    assert [(one.model, one.rule.id, one.severity) for one in made.disagreements] == [
        ("a", "server-refuses", "error"),
        ("b", "server-accepts", "warning"),
    ]
    assert "the moon is full" in made.disagreements[0].cause
    assert "batch-negative" in made.disagreements[1].cause
    assert (made.agreed, list(made.not_judged)) == ({"c": "batch-negative"}, ["d"])


@pytest.mark.server
def test_the_command_says_what_was_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "net")
    # a rule of core that doctor does not have
    more = "sequence_batching { direct { minimum_slot_utilization: 2 } }"
    write_files({"@/config.pbtxt": OWN + more, "@/1/": ""}, tmp_path, "slots")
    write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "two words")
    assert main(["doctor", str(tmp_path), "--prove"]) == 1
    captured = capsys.readouterr()
    assert "error server-refuses" in captured.out
    assert "minimum slot utilization must be in range" in captured.out
    assert "and doctor agree on 1 of 2 models\n  not judged: two words: its name holds" in captured.err


@pytest.mark.server
def test_what_is_not_copied_is_not_judged(tmp_path: Path) -> None:
    output = 'output { name: "Y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" }'
    write_files({"@/config.pbtxt": 'backend: "own"' + output, "@/1/": "", "@/labels.txt": ""}, tmp_path, "large")
    with (tmp_path / "large" / "labels.txt").open("wb") as file:
        file.truncate(3 << 30)
    write_files({"@/config.pbtxt": Path("config.pbtxt"), "@/1/": ""}, tmp_path, "circle")
    write_files({"@/config.pbtxt": b"\xff", "@/1/": ""}, tmp_path, "garbage")
    made = prove(read_repository(tmp_path))
    assert (made.disagreements, made.agreed) == ([], {"garbage": "config-syntax"})
    assert made.not_judged == {
        "circle": "its configuration cannot be read",
        "large": "a label file is too large or cannot be read, and is not copied",
    }


def test_a_configuration_that_may_not_be_read_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without the right to read it, which root always has."""
    write_files({"@/config.pbtxt": OWN, "@/1/": ""}, tmp_path, "net")

    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("generator.doctor.repository._read_text", refuse)
    made = prove(read_repository(tmp_path))
    assert (made.disagreements, made.not_judged) == ([], {"net": "its configuration cannot be read"})


def test_the_stand_in_is_a_library_that_answers_success(tmp_path: Path) -> None:
    path = tmp_path / "libtriton_own.so"
    path.write_bytes(make_stand_in())
    execute = ctypes.CDLL(str(path)).TRITONBACKEND_ModelInstanceExecute
    execute.restype = ctypes.c_void_p
    assert execute() is None
