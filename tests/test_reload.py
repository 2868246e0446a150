"""`trtgen reload`: a version proved, loaded into a server under load, taken back, and one that does not load."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from generator.cli import main
from generator.errors import ServerError
from generator.repository import Layout, read_record
from generator.server import endpoint
from generator.server.embedded import EmbeddedServer
from generator.server.hardening import OWNER_HEADER
from generator.server.reload import LiveServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

STAR = (Path(__file__).parents[1] / "clients" / "samples" / "star.jpg").read_bytes()


class Callers:
    """Clients that call the ensemble without a pause; `versions` are those that answered, `errors` what else came."""

    def __init__(self, grpc_url: str, count: int = 3) -> None:
        self.versions: list[str] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(grpc_url,)) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, grpc_url: str) -> None:
        image = InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[STAR]], dtype=object))
        with InferenceServerClient(grpc_url) as client:
            while not self._stop.is_set():
                try:
                    answer = client.infer("demo", [image], client_timeout=30)
                    assert answer.as_numpy("PROBABILITIES").argmax() == 3
                    self.versions.append(answer.get_response().model_version)
                except (InferenceServerException, AssertionError) as error:
                    self.errors.append(str(error))


def add_version(root: Path, version: int) -> Sequence[str]:
    """Publish the first version once more under another number, as far as a server and the gate can tell."""
    record = read_record(root, "demo")
    assert record is not None
    models = Layout.of_record(record).models
    for model in models:
        shutil.copytree(root / model / "1", root / model / str(version))
    path = root / "demo" / "trtgen.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    return models


@pytest.mark.server
def test_a_version_comes_and_goes_without_a_break(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with EmbeddedServer(demo, explicit=True) as server, Callers(server.grpc_url) as callers:
        options = ("--repository", str(demo), "--http-url", server.http_url)
        assert main(["reload", "demo", *options]) == 1  # without the key
        assert "--key FILE" in capsys.readouterr().err
        monkeypatch.setenv("TRTGEN_KEY", server.secret)

        def read_versions() -> dict[str, str]:
            states = endpoint.list_models(server.http_url, headers={OWNER_HEADER: server.secret})
            return {state.name: state.version for state in states if state.state == "READY"}

        models = add_version(demo, 2)
        assert main(["reload", "demo", *options]) == 0
        said = capsys.readouterr().err
        assert "proved demo  version 2, in a second server" in said
        assert "back again: trtgen reload demo --version 1" in said
        assert read_versions() == dict.fromkeys(models, "2")

        (tmp_path / "key").write_text(server.secret + "\n")
        assert main(["reload", "demo", *options, "--version", "1", "--key", str(tmp_path / "key")]) == 0
        assert read_versions() == dict.fromkeys(models, "1")
        assert server.secret not in said + capsys.readouterr().err

        # One that the gate refuses does not reach the live server.
        broken = demo / "demo_classifier" / "2" / "model.onnx"
        good = broken.read_bytes()
        broken.write_bytes(good[:-200] + bytes(200))
        assert main(["reload", "demo", *options]) == 1
        assert read_versions() == dict.fromkeys(models, "1")

        # One that gets past it and does not load: the preprocessing, which came first, goes back with it.
        record = read_record(demo, "demo")
        assert record is not None
        broken.write_bytes(b"no graph")
        live = LiveServer(server.http_url, demo, key=server.secret)
        with pytest.raises(ServerError, match=r"demo_classifier was not loaded: .*what was served before is served on"):
            live.reload(record)
        assert read_versions() == dict.fromkeys(models, "1")
        assert callers.errors == []
        assert set(callers.versions) == {"1", "2"}

        broken.write_bytes(good)
        with InferenceServerClient(server.grpc_url) as client:
            client.unload_model("demo", headers={f"triton-grpc-protocol-{OWNER_HEADER}": server.secret})
        with pytest.raises(ServerError, match="does not serve demo"):
            live.reload(record)


@pytest.mark.server
def test_another_batch_limit_comes_without_a_break(demo: Path) -> None:
    """An ensemble whose members take fewer images than it does is ended by tritonserver."""
    record = read_record(demo, "demo")
    assert record is not None
    with EmbeddedServer(demo, explicit=True) as server, Callers(server.grpc_url) as callers:
        live = LiveServer(server.http_url, demo, key=server.secret)
        headers = {OWNER_HEADER: server.secret}
        for limit in (8, 4, 32):
            for model in Layout.of_record(record).models:
                path = demo / model / "config.pbtxt"
                path.write_text(re.sub(r"max_batch_size: \d+", f"max_batch_size: {limit}", path.read_text()))
            live.reload(record)
            assert endpoint.find_batch_limit(server.http_url, "demo", headers=headers) == limit
    assert callers.errors == []
    assert callers.versions


def test_what_is_refused_before_anything_is_asked(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reload", "demo", "--repository", str(demo), "--http-url", "10.0.0.1:8000"]) == 1
    assert "10.0.0.1:8000 is not this machine" in capsys.readouterr().err
    for url in ("http://127.0.0.1:8000", "127.0.0.1", ":8000", "127.0.0.1:x"):
        assert main(["reload", "demo", "--repository", str(demo), "--http-url", url]) == 1
        said = capsys.readouterr().err
        assert f"{url!r} is not an address" in said
        assert "(--http-url 127.0.0.1:8000)" in said
    assert main(["reload", "demo", "--repository", str(demo), "--key", str(demo / "absent")]) == 1
    assert f"the key {demo}/absent cannot be read: No such file or directory\n" in capsys.readouterr().err
    assert main(["reload", "other", "--repository", str(demo)]) == 1
    assert "holds no model 'other'" in capsys.readouterr().err
    assert main(["reload", "demo", "--repository", str(demo), "--version", "7", "--http-url", "127.0.0.1:9"]) == 1
    assert "has no version 7" in capsys.readouterr().err
