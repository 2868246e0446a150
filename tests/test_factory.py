"""The user's own module: made by a function of theirs, or a program that torch.export.save wrote."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from generator.cli import main
from generator.errors import SourceError, SpecError, VerificationError
from generator.graph.export import make_graph
from generator.images.reference import make_reference
from generator.images.sets import default_images
from generator.repository.fingerprint import fingerprint
from generator.sources import load_network
from generator.sources.factory import find_file
from generator.spec.file import load_spec, make_spec
from tests.tiny_onnx import only

RECIPE = {"resize": 40, "crop": 32, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
LABELS = ["ant", "bee", "cat", "dog"]
NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 5, stride=4)
        self.drop = torch.nn.Dropout(0.5)
        self.fc = torch.nn.Linear(128, classes)
    def features(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), 4).flatten(1)
    def forward(self, x):
        return self.fc(self.drop(self.features(x)))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    new = {name: sys.modules[name] for name in {*sys.modules} - before}
    places = {name: [getattr(one, "__file__", None), *getattr(one, "__path__", ())] for name, one in new.items()}
    for name, where in places.items():
        if any(str(path).startswith(str(tmp_path)) for path in where):
            del sys.modules[name]


def write(path: str, code: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(NET) + textwrap.dedent(code))


def make(factory: str, **options: Any) -> Any:
    given = {"recipe": RECIPE, "labels": "index", **options}
    return load_network(make_spec(["mine"], factory=factory, **given)[0])


def failing(factory: str, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        make(factory, **options)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def returning(code: str, **options: Any) -> SourceError:
    """The error over a function whose body is `code`."""
    write("net.py", "def make():\n" + textwrap.indent(textwrap.dedent(code), "    "))
    return failing("net.py:make", **options)


# --- what is taken -------------------------------------------------------------------------------------------------


def test_a_module_of_a_package_answers_as_in_evaluation_mode(place: Path) -> None:
    """Found from the working directory, with a dropout that is on until trtgen calls eval(), and FP64 weights."""
    write("shop/nets/own.py", "def make():\n    return Net().double().train()\n")
    network = make("shop.nets.own:make")
    pixels = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
    assert only(network.run(pixels)).shape == (3, 4)
    assert np.array_equal(only(network.run(pixels)), only(network.run(pixels)))
    other = make("shop.nets.own:make", seed=1)
    assert not np.allclose(only(network.run(pixels)), only(other.run(pixels)))  # initial weights follow from the seed
    assert np.array_equal(only(network.run(pixels)), only(make("shop.nets.own:make").run(pixels)))


def test_a_file_with_its_neighbours_brings_recipe_and_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("code/parts.py", "")
    Path("code/net.py").write_text(
        "import dataclasses, parts\nprint('a word')\n@dataclasses.dataclass\nclass Size:\n    classes: int = 4\n"
        f"def make():\n    return dict(module=parts.Net(Size().classes), recipe={RECIPE}, labels={LABELS})\n"
    )
    network = make("code/net.py:make", recipe={}, labels=None)
    assert network.labels == tuple(LABELS)
    assert (network.recipe.resize, network.recipe.crop, network.recipe.std) == (40, (32, 32), (0.2, 0.3, 0.4))
    assert network.description == "your own code, net.py:make"
    assert capsys.readouterr() == ("", "a word\n")  # standard output is for results
    own = make("code/net.py:make", recipe={"resize": 50}, labels="index")  # the spec has the last word
    assert (own.recipe.resize, own.recipe.crop, own.labels) == (50, (32, 32), ("0", "1", "2", "3"))
    write("named.py", "def make():\n    return {'module': Net(), 'recipe': 'imagenet'}\n")
    assert make("named.py:make", recipe={}).recipe.resize == 256


@pytest.mark.parametrize(("own", "labels"), [(["rust"], ("not rust", "rust")), (["ok", "rust"], ("ok", "rust"))])
def test_one_score_tells_two_classes_apart(place: Path, own: list[str], labels: tuple[str, ...]) -> None:
    write("net.py", f"def make():\n    return dict(module=Net(1), labels={own})\n")
    assert make("net.py:make", labels=None).labels == labels


@pytest.mark.parametrize("form", ["pt", "safetensors", "wrapped"])
def test_weights_are_loaded_into_the_module(place: Path, form: str) -> None:
    write("net.py", "def make():\n    return Net()\n")
    trained = make("net.py:make", seed=5).module
    state = trained.state_dict()
    path = place / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
        torch.save(wrapped if form == "wrapped" else state, path)
    network = make("net.py:make", weights=str(path))
    assert network.description == f"your own code, net.py:make, weights {path.name}"
    assert all(torch.equal(value, state[name]) for name, value in network.module.state_dict().items())


def test_scores_in_logits_are_taken(place: Path) -> None:
    write(
        "net.py",
        """
        class Answer:
            def __init__(self, logits):
                self.logits = logits
        class Wrapped(Net):
            def forward(self, x):
                return Answer(super().forward(x))
        """,
    )
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    assert np.array_equal(only(make("net.py:Wrapped").run(pixels)), only(make("net.py:Net").run(pixels)))


def test_what_the_graph_follows_from(place: Path) -> None:
    write("net.py", "def make():\n    return Net()\ndef other():\n    return Net()\n")
    (place / "w.pt").write_bytes(b"1")

    def artifact(factory: str = "net.py:make", **options: Any) -> str:
        spec = make_spec(["mine"], factory=factory, recipe="imagenet", labels="index", target="onnxruntime", **options)[
            0
        ]
        return fingerprint(spec)["artifact"]

    first = artifact()
    weighted = artifact(weights="w.pt")
    assert len({first, weighted, artifact("net.py:other"), artifact(seed=1)}) == 4
    (place / "w.pt").write_bytes(b"2")
    assert artifact(weights="w.pt") != weighted
    Path("sub").mkdir()
    os.rename("net.py", "sub/net.py")  # noqa: PTH104
    assert artifact("sub/net.py:make") == first  # a file counts by its content, wherever it lies
    write("sub/net.py", "def make():\n    return Net() # changed\n")
    assert artifact("sub/net.py:make") != first


def test_a_spec_in_another_folder_finds_its_files(place: Path) -> None:
    write("code/net.py", "")
    Path("code/models.yaml").write_text(
        "models: [{name: mine, factory: 'net.py:Net', weights: w.pt, recipe: imagenet, labels: index}]"
    )
    (spec,) = load_spec(Path("code/models.yaml"))
    assert spec.source == "factory"
    assert (spec.factory, spec.weights) == (f"{place}/code/net.py:Net", f"{place}/code/w.pt")


def test_only_the_folder_of_a_package_is_looked_into_before_it_runs(place: Path) -> None:
    write("shop/own.py", "raise SystemExit('ran')\n")
    assert find_file("shop.own:make") == place / "shop/own.py"


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("own_net:make", "the module own_net of factory is not in .* and Python's path; did you mean own_nets"),
        ("shop.onw:make", r"the module shop.onw of factory is not in the package shop; did you mean own\?"),
        ("shop.own.deep:make", "shop.own of factory is a module, not a package: there is no shop.own.deep"),
        ("shop:make", "the module shop of factory has no file of its own"),
        ("shop/onw.py:make", r"the file .*/shop/onw.py of factory does not exist; did you mean own.py\?"),
        ("nowhere/own.py:make", r"the file .*/nowhere/own.py of factory does not exist$"),
        ("shop.own:mkae", r"own.py has no function mkae; did you mean make\?"),
        ("shop.own:SIZE", "SIZE in .*own.py is an object of the type int; a function was expected"),
        ("shop.own:more", "factory shop.own:more cannot be called without arguments: .*'classes'"),
    ],
)
def test_a_factory_that_is_not_there(place: Path, factory: str, message: str) -> None:
    write("shop/own.py", "SIZE = 3\ndef make():\n    return Net()\ndef more(classes):\n    return Net(classes)\n")
    write("own_nets.py", "")
    error = failing(factory)
    assert re.search(message, error.message)
    assert error.fields == {"factory": None}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"factory": "torchvision.models.resnet18"}, "package.module:function or file.py:function was expected"),
        ({"factory": "net.py:make", "weights": "random"}, "weights of a factory are a file"),
        ({"factory": "net.py:make", "architecture": "resnet18"}, "architecture does not go with source: factory"),
        ({"factory": "net.py:make", "onnx": "a.onnx", "source": "factory"}, "onnx is given, but source is factory"),
        ({"factory": "net.py:make", "source": "torchvision"}, "factory is given, but source is torchvision"),
        ({"source": "factory"}, "source: factory needs the field factory"),
        ({"source": "pt2"}, "source: pt2 needs the field pt2"),
    ],
)
def test_fields_that_contradict_a_factory(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        make_spec(["mine"], **fields)


def test_code_that_raises_is_named_by_its_line(place: Path) -> None:
    write("net.py", "import no_such_package\n")
    line = len(textwrap.dedent(NET).splitlines()) + 1
    error = failing("net.py:make")
    assert error.message.endswith(
        f"raised ModuleNotFoundError: No module named 'no_such_package' ({place}/net.py:{line}) when it was imported"
    )
    assert "traceback" not in error.message.lower()
    write("net.py", "def make(:\n")
    assert "SyntaxError" in failing("net.py:make").message
    assert f"net.py, line {line})" in failing("net.py:make").message
    write("net.py", "import sys\nsys.exit('usage: net.py DATA')\n")
    error = failing("net.py:make")
    assert f"raised SystemExit: usage: net.py DATA ({place}/net.py:{line + 1}) when it was imported" in error.message
    assert "__main__" in error.hint
    error = returning("raise ValueError('first line\\nsecond line')")
    assert f"raised ValueError: first line ({place}/net.py:{line + 1}) when it was called" in error.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "returns nothing; a torch.nn.Module was expected"),
        ("return Net", "returns the class Net, not an instance of it; a torch.nn.Module was expected"),
        ("return Net(), ['a']", "returns a tuple of 2; a torch.nn.Module was expected"),
        ("return {'model': Net()}", "returns a dict with the keys 'model'; a torch.nn.Module was expected"),
        ("return dict(module=Net(), classes=['a'])", "returns the unknown keys 'classes'"),
        ("return dict(module=Net(), labels='abcd')", "returns labels that are not a list of names"),
        ("return dict(module=Net(), labels=['a', 'b'])", "gives 2 labels, but its module answers 4 scores"),
        ("return dict(module=Net(), recipe={'crop': 32})", "recipe that is not valid: it lacks resize, inter"),
        ("return dict(module=Net(), recipe={'size': 32})", "recipe that is not valid: size: "),
        ("return dict(module=Net(), recipe='torch')", "recipe that is not valid: "),
    ],
)
def test_a_function_that_returns_something_else(place: Path, body: str, message: str) -> None:
    error = returning(body, **({"labels": None} if "labels" in body else {}))
    assert re.search(message, error.message)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("return {'scores': x, 'features': x}", "answers a dict with the keys 'scores', 'features'; one tensor"),
        ("return x, x", "answers a tuple of 2; one tensor"),
        ("return self.conv(x)", r"answers two images with float32 \[2, 8, 7, 7\]; floating-point scores"),
        ("return super().forward(x).argmax(1)", r"answers two images with int64 \[2\]; floating-point scores"),
        ("return super().forward(x).argmax(1, keepdim=True)", r"answers two images with int64 \[2, 1\]"),
        ("return super().forward(x).mean(0, keepdim=True)", r"answers two images with float32 \[1, 4\]"),
        (
            "return self.fc(x.flatten(1))",
            r"does not take images \[2, 3, 32, 32\]: RuntimeError: mat1 and mat2 .*net.py:",
        ),
    ],
)
def test_a_module_that_answers_something_else(place: Path, forward: str, message: str) -> None:
    write("net.py", f"class Other(Net):\n    def forward(self, x):\n        {forward}\n")
    with pytest.raises(SourceError, match=message):
        make("net.py:Other")


def test_a_module_of_another_image_size(place: Path) -> None:
    body = "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 48 * 48, 4))"
    error = returning(body)
    assert "does not take images [2, 3, 32, 32]: RuntimeError: mat1 and mat2" in error.message
    assert error.fields == {"image_size": None}
    assert make("net.py:make", image_size=48).recipe.crop == (48, 48)


def test_weights_and_classes_that_do_not_fit(place: Path) -> None:
    write("net.py", "def make():\n    return Net(7)\n")
    write("four.py", "def make():\n    return Net()\n")
    torch.save(make("four.py:make").module.state_dict(), "w.pt")
    with pytest.raises(
        SourceError, match=r"does not fit the module of the factory .*:\n.*fc.weight has shape \[4, 1"
    ) as caught:
        make("net.py:make", weights="w.pt")
    assert caught.value.fields == {"weights": None}
    with pytest.raises(SourceError, match=r"w2\.pt does not exist"):
        make("net.py:make", weights="w2.pt")
    assert "classes is 4, but the model has 7" in failing("net.py:make", classes=4).message
    (place / "labels.txt").write_text("a\nb\n")
    assert "has 2 lines, but mine has 7 classes" in failing("net.py:make", labels="labels.txt").message


def test_a_dropout_that_eval_does_not_turn_off_is_found(place: Path) -> None:
    write(
        "net.py",
        """
        class Noisy(Net):
            def forward(self, x):
                return self.fc(torch.nn.functional.dropout(self.features(x), training=True))
        """,
    )
    spec = make_spec(["mine"], factory="net.py:Noisy", recipe=RECIPE, labels="index")[0]
    with pytest.raises(VerificationError, match="differently twice"):
        make_reference(spec, load_network(spec), default_images())


# --- programs of torch.export --------------------------------------------------------------------------------------


def save_program(path: str, *, free: Any, module: torch.nn.Module | None = None, images: int = 2) -> torch.nn.Module:
    torch.manual_seed(1)
    layers = (torch.nn.Conv2d(3, 8, 5, stride=4), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten())
    module = module or torch.nn.Sequential(*layers, torch.nn.Dropout(), torch.nn.Linear(392, 4)).eval()
    shapes = ({0: free},) if free is not None else None
    program = torch.export.export(module, (torch.zeros(images, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return module


def load_program(path: str, **options: Any) -> Any:
    return load_network(make_spec([path], recipe=RECIPE, labels="index", **options)[0])


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-8.6"])
def test_a_program_answers_like_the_module_that_it_was_exported_from(place: Path, target: str) -> None:
    module = save_program("net.pt2", free=torch.export.Dim.AUTO)
    spec = make_spec(["net.pt2"], recipe=RECIPE, labels="index", target=target)[0]
    assert (spec.name, spec.source, spec.pt2) == ("net", "pt2", place / "net.pt2")
    network = load_network(spec)
    pixels = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = module(torch.from_numpy(network.recipe.normalise(pixels))).numpy()
    assert np.abs(only(network.run(pixels)) - expected).max() < 1e-5
    session = onnxruntime.InferenceSession(make_graph(spec, network)[0].SerializeToString())
    for count in (1, 5):
        (answer,) = session.run(None, {"PIXELS": pixels[:count]})
        assert np.abs(answer - expected[:count]).max() < 1e-4


def test_a_program_that_cannot_be_served(place: Path) -> None:
    def refused(**options: Any) -> SourceError:
        with pytest.raises(SourceError) as caught:
            load_program("net.pt2", **options)
        return caught.value

    assert "the program" in refused().message
    assert "does not exist" in refused().message
    save_program("net.pt2", free=None)
    error = refused()
    assert "the batch is baked in: input has shape [2, 3, 32, 32], a free first axis was expected" in error.message
    exec(error.hint.partition(": ")[2], {"torch": torch, "model": save_program("other.pt2", free=None)})
    assert only(load_program("net.pt2").run(np.zeros((1, 32, 32, 3), np.uint8))).shape == (1, 4)
    save_program("net.pt2", free=torch.export.Dim("batch", min=1, max=8))
    assert "takes 1 to 8 images at once; 1 to 32 were expected" in refused().message
    assert refused().fields == {"batch.max": 8}
    assert load_program("net.pt2", batch={"max": 8}).labels == ("0", "1", "2", "3")
    assert "does not take images [2, 3, 48, 48]" in refused(image_size=48, batch={"max": 8}).message
    for content in (b"no program", b"PK\x03\x04 no archive"):
        Path("net.pt2").write_bytes(content)
        assert "net.pt2 is not a program that torch" in refused().message
    torch.save({"a": torch.zeros(1)}, "net.pt2")
    assert "net.pt2 is not a program that torch" in refused().message


# --- the whole chain -----------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_factory_with_weights_becomes_a_proved_repository(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("net.py", f"def make():\n    return dict(module=Net(), recipe={RECIPE}, labels={LABELS})\n")
    torch.save(make("net.py:make", seed=5).module.state_dict(), "w.pt")
    arguments = ["build-repo", "mine", "--factory", "net.py:make", "--weights", "w.pt", "--require", "all"]
    arguments += ["--max-batch", "4", "--target", "onnxruntime"]
    assert main(arguments) == 0
    assert "* loaded    your own code, net.py:make, weights w.pt" in capsys.readouterr().err
    record = json.loads(Path("model_repository/mine/trtgen.json").read_text())
    assert {entry["stage"]: entry["status"] for entry in record["proof"]}["served ensemble"] == "proved"
    assert "recipe" in record["assumed"]
    assert Path("model_repository/mine/labels.txt").read_text().split() == LABELS
    assert main(arguments) == 0
    assert "is up to date" in capsys.readouterr().err
    write("net.py", "def make():\n    raise OSError('no data set here')\n")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "raised OSError: no data set here" in error
    assert "Traceback" not in error
    assert json.loads(Path("model_repository/mine/trtgen.json").read_text()) == record
