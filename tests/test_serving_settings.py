"""Queue, priorities, response cache and rate limiter: refused where they are wrong, and what a real server does."""

from __future__ import annotations

import io
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from generator.demo.draw import draw_set
from generator.errors import ConfigError, SpecError
from generator.pipeline import BuildOptions, build_repository
from generator.repository.fingerprint import fingerprint
from generator.server.configs import CACHE_BYTES, find_options
from generator.server.container import Container
from generator.server.embedded import EmbeddedServer
from generator.server.endpoint import count_pending
from generator.server.ports import Ports
from generator.spec.file import load_spec, make_spec
from generator.tasks.detection.reading import Reading
from generator.triton.check import check_members
from tests.server_parts import ECHO, add_python_model, read_settled, wait_until
from tests.test_model_config import ARTIFACT, members_of, parsed, rendered, with_plan
from tests.tiny_onnx import write_tiny_onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))  # it is no package
from triton_images import BusyError, Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from generator.artifact import Artifact

QUEUE = {
    "max_size": 2,
    "timeout_microseconds": 400_000,
    "timeout_action": "delay",
    "priority_levels": 2,
    "preferred_batch_sizes": [4],
}
LATE, LIMITED = "late", "limited"
# It takes the resource that LIMITED's classifier shares.
SLOW = ECHO.replace("answers = []", "open({started!r}, 'w').close(); import time; time.sleep(0.6); answers = []")
SHARES = "count: 1 kind: KIND_CPU rate_limiter { resources { name: 'compute' count: 1 } }"
GOOD = draw_set(1)[0].jpeg


@cache
def encode(edge: int) -> bytes:
    """An image of few bytes whose decoding takes long: 6000 pixels about half a second."""
    stream = io.BytesIO()
    Image.new("RGB", (edge, edge), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


# --- in the spec and in config.pbtxt


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("queue: {max_size: 0}", "queue.max_size: Input should be greater than or equal to 1 (found 0)"),
        ("queue: {timeout: 3}", "queue.timeout: unknown field; did you mean timeout_action?"),
        ("queue: {timeout_action: delay}", "queue: timeout_action goes with timeout_microseconds only"),
        ("queue: {timeout_microseconds: 500}", "queue.timeout_microseconds is 500: a request that waits for others"),
        ("queue: {priority_levels: 1}", "queue.priority_levels: Input should be greater than or equal to 2 (found 1)"),
        ("queue: {default_priority: 1}", "queue: default_priority is 1, which is above priority_levels (not given)"),
        ("queue: {priority_levels: 2, default_priority: 3}", "which is above priority_levels (2)"),
        ("queue: {preferred_batch_sizes: [8, 33]}", "queue.preferred_batch_sizes: 33 is above batch.max (32)"),
        ("queue: 3", "queue: Input should be a valid dictionary or instance of QueueOptions (found 3)"),
        ("response_cache: maybe", "response_cache: Input should be a valid boolean"),
        ("response_cache: true, layout: fused", "response_cache does not go with layout: fused"),
        ("response_cache: true, task: detection", "response_cache does not go with task: detection"),
        ("rate_limiter: {}", "rate_limiter.resources: Field required"),
        ("rate_limiter: {resources: {}}", "rate_limiter.resources: Dictionary should have at least 1 item"),
        ("rate_limiter: {resources: {gpu: 0}}", "rate_limiter.resources: Input should be greater than or equal to 1"),
        ("rate_limiter: {resources: {'a b': 1}}", "rate_limiter.resources: String should match pattern"),
        (
            "queue: {max_size: 1}, config: {preprocess: 'dynamic_batching {}'}",
            "queue of the spec and dynamic_batching in config.preprocess state the same",
        ),
        (
            "response_cache: false, config: {ensemble: 'response_cache {}'}",
            "response_cache of the spec and response_cache in config.ensemble state the same",
        ),
        (
            "rate_limiter: {resources: {a: 1}}, config: {classifier: 'instance_group {}'}",
            "rate_limiter of the spec and instance_group in config.classifier state the same",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(fields: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(f"models: [{{name: a, {fields}}}]")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert problem in caught.value.message


def test_every_member_that_runs_gets_the_queue() -> None:
    texts = rendered(queue=QUEUE, max_queue_delay_microseconds=1000)
    ours = {name: parsed(texts, name).dynamic_batching for name in ("net_preprocess", "net_classifier")}
    for batcher in ours.values():
        assert (batcher.priority_levels, batcher.default_priority_level) == (2, 2)
        policy = batcher.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds, policy.timeout_action) == (2, 400_000, 1)
    # collected are only the network's requests
    assert [list(one.preferred_batch_size) for one in ours.values()] == [[1], [4]]
    assert [one.max_queue_delay_microseconds for one in ours.values()] == [0, 1000]
    assert not parsed(texts, "net").HasField("dynamic_batching")


def test_a_fused_model_has_the_queue_and_the_limits_of_the_network() -> None:
    fields: dict[str, Any] = {
        "queue": QUEUE,
        "max_queue_delay_microseconds": 1000,
        "rate_limiter": {"resources": {"gpu": 1}},
    }
    config = parsed(rendered(layout="fused", **fields), "net")
    ensemble = parsed(rendered(**fields), "net_classifier")
    assert config.dynamic_batching == ensemble.dynamic_batching
    assert config.instance_group == ensemble.instance_group


def test_a_preprocessing_step_on_the_gpu_goes_on_collecting_requests() -> None:
    fields: dict[str, Any] = {"target": "tensorrt-10", "decode": "gpu", "layout": "ensemble"}
    batcher = parsed(rendered(with_plan((1, 8, 32)), queue=QUEUE, **fields), "net_preprocess").dynamic_batching
    assert list(batcher.preferred_batch_size) == []
    assert batcher.default_queue_policy.max_queue_size == 2


def test_a_cache_is_refused_where_requests_may_ask_for_different_outputs() -> None:
    """Triton's cache would give the second one what the first one asked for."""
    members = members_of(ARTIFACT, layout="fused", config={"fused": "response_cache { enable: true }"})
    texts = {member.config.name: member.render() for member in members}
    with pytest.raises(ConfigError, match="net: response_cache is on with 2 outputs"):
        check_members(texts, members, ARTIFACT)


def test_batch_sizes_alone_leave_preprocessing_as_it_is() -> None:
    texts = rendered(queue={"preferred_batch_sizes": [8, 16]}, config={"preprocess": "dynamic_batching {}"})
    assert list(parsed(texts, "net_classifier").dynamic_batching.preferred_batch_size) == [8, 16]
    assert rendered(queue={})["net_preprocess"] == rendered()["net_preprocess"]


def test_a_model_without_batches_has_a_queue_where_one_is_asked_for() -> None:
    batcher = parsed(
        rendered(batch={"max": 1}, queue={"timeout_microseconds": 9000}), "net_classifier"
    ).dynamic_batching
    assert batcher.default_queue_policy.timeout_action == 0  # REJECT
    assert batcher.max_queue_delay_microseconds == 0


def test_cache_and_limits_stand_where_they_belong() -> None:
    texts = rendered(response_cache=True, rate_limiter={"resources": {"gpu": 2, "bus": 1}})
    assert [parsed(texts, name).response_cache.enable for name in texts] == [False, False, True]
    limits = [[one.rate_limiter for one in parsed(texts, name).instance_group] for name in texts]
    assert [len(one.resources) for group in limits for one in group] == [0, 2]
    assert {one.name: one.count for one in limits[1][0].resources} == {"gpu": 2, "bus": 1}


READING = Reading(
    layout="end2end", boxes="xyxy", units="pixels", background=None, tensors=("rows",), classes=1, candidates=9
)


@pytest.mark.parametrize(
    ("artifact", "options"), [(ARTIFACT, {}), (replace(ARTIFACT, head=READING), {"task": "detection"})]
)
def test_no_two_steps_of_a_request_run_at_once(artifact: Artifact, options: dict[str, Any]) -> None:
    """Before 26.03 an ensemble with such steps never answers a request of which a full queue refuses one."""
    *members, _ = members_of(artifact, **options)
    steps = parsed(rendered(artifact, **options), "net").ensemble_scheduling.step
    assert [step.model_name for step in steps] == [member.config.name for member in members]
    for before, step in pairwise(steps):
        assert set(before.output_map.values()) & set(step.input_map.values())


def test_they_belong_to_the_configuration_and_leave_the_rest_as_it_was() -> None:
    (plain,) = make_spec(["demo"])
    (with_all,) = make_spec(["demo"], queue=QUEUE, max_queue_delay_microseconds=1, response_cache=True)
    (empty,) = make_spec(["demo"], queue=None, response_cache=None, rate_limiter=None)
    assert not {"queue", "response_cache", "rate_limiter"} & plain.as_record().keys()
    first, second = fingerprint(plain), fingerprint(with_all)
    assert first["artifact"] == second["artifact"]  # no plan is built anew
    assert first["configuration"] != second["configuration"]
    assert fingerprint(empty) == first


def test_a_server_gets_the_options_that_the_repository_needs(tmp_path: Path) -> None:
    def options() -> list[str]:
        argv = Container(tmp_path, ports=Ports(http=1, grpc=2, metrics=3)).argv
        assert [one for one in argv if "cache" in one or "rate" in one] == find_options(tmp_path)
        return find_options(tmp_path)

    (tmp_path / "net").mkdir()
    config = tmp_path / "net" / "config.pbtxt"
    config.write_text(rendered()["net_classifier"])
    assert options() == []
    config.write_text(rendered(rate_limiter={"resources": {"gpu": 2}})["net_classifier"])
    assert options() == ["--rate-limit=execution_count"]
    config.write_text(rendered(response_cache=False)["net"])
    assert options() == []
    config.write_text(rendered(response_cache=True)["net"])
    assert options() == [f"--cache-config=local,size={CACHE_BYTES}"]
    compose = (Path(__file__).parents[1] / "compose.yaml").read_text()
    assert f"--cache-config=local,size={CACHE_BYTES}\n" in compose
    assert "--rate-limit=execution_count\n" in compose


# --- on a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("settings")
    graph = write_tiny_onnx(folder / "tiny.onnx")
    root = folder / "model_repository"
    shared: dict[str, Any] = {
        "recipe": {"base": "imagenet", "resize": 32, "crop": 32},
        "labels": "index",
        "instances": {"preprocess": 1, "classifier": 1},
        "batch": {"max": 8},
    }
    for name, settings in (
        (LATE, {"queue": QUEUE, "max_queue_delay_microseconds": 300_000}),
        (
            LIMITED,
            {
                "queue": {"timeout_microseconds": 100_000},
                "response_cache": True,
                "rate_limiter": {"resources": {"compute": 1}},
            },
        ),
    ):
        (spec,) = make_spec([str(graph)], name=name, **shared, **settings)
        build_repository(spec, root, BuildOptions(verify=False))
    add_python_model(root / "slow", SLOW.format(started=str(folder / "started")), instances=SHARES)
    with EmbeddedServer(root) as running:
        yield running


class Asker:
    """Requests that are sent without waiting for their answers; `done` has their names in the order of the answers."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.client = grpc.InferenceServerClient(server.grpc_url)
        self.metrics_url = server.metrics_url
        self.done: list[str] = []
        self.errors: dict[str, str] = {}

    def send(self, name: str, model: str, tensor: str, values: NDArray[Any], kind: str, **more: Any) -> None:
        def finish(result: object, error: InferenceServerException | None) -> None:
            if error is not None:
                self.errors[name] = f"{error.status()} {error.message()}"
            self.done.append(name)

        given = grpc.InferInput(tensor, list(values.shape), kind)
        given.set_data_from_numpy(values)
        self.client.async_infer(model, [given], finish, client_timeout=20.0, **more)

    def send_images(self, name: str, model: str, *images: bytes, **more: Any) -> None:
        self.send(name, model, "IMAGE", np.array(images, dtype=np.object_)[:, None], "BYTES", **more)

    def wait_for(self, count: int) -> None:
        assert wait_until(lambda: len(self.done) >= count), (self.done, self.errors)

    def wait_for_queue(self, count: int) -> None:
        """Wait until so many requests wait, and not only for the moment until one of them is taken."""
        assert wait_until(lambda: {count_pending(self.metrics_url) for _ in range(3)} == {count}), self.errors


@pytest.fixture
def asker(server: EmbeddedServer) -> Asker:
    return Asker(server)


def read_metric(server: EmbeddedServer, name: str, model: str) -> int:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as answer:
        text = answer.read().decode()
    return sum(int(value) for value in re.findall(rf'^{name}{{model="{model}"[^}}]*}} (\d+)$', text, re.MULTILINE))


@pytest.mark.server
def test_the_same_images_are_answered_from_the_cache(server: EmbeddedServer) -> None:
    hits, step = "nv_cache_num_hits_per_model", f"{LIMITED}_preprocess"
    before = read_metric(server, "nv_inference_count", step)  # warm-up
    answers = []
    for protocol, url in (("grpc", server.grpc_url), ("grpc", server.grpc_url), ("http", server.http_url)):
        with Connection(protocol, url) as connection:
            answers.append(connection.classify(connection.find_model(LIMITED), [GOOD]))
    assert answers[0] == answers[1] == answers[2]
    assert read_settled(lambda: read_metric(server, hits, LIMITED), 0) == 2
    assert read_metric(server, "nv_inference_count", step) == before + 1
    with Connection("grpc", server.grpc_url) as connection:  # another request, though of the same image
        connection.classify(connection.find_model(LIMITED), [GOOD, GOOD])
    assert read_metric(server, hits, LIMITED) == 2


@pytest.mark.server
def test_a_request_that_waits_too_long_is_refused_and_may_be_sent_again(server: EmbeddedServer) -> None:
    """One process decodes each image for longer than the timeout: one or two of six requests get it in time."""
    urls = {"grpc": server.grpc_url, "http": server.http_url}

    def ask(protocol: str, images: int) -> str:
        with Connection(protocol, urls[protocol]) as connection:
            model = connection.find_model(LIMITED)
            try:
                connection.classify(model, [encode(6000), *[GOOD] * images])
            except BusyError as error:
                return f"{protocol}: {error} ({error.hint})"
        return "answered"

    encode(6000)
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(ask, ["grpc", "http"] * 3, range(6)))
    busy = "is busy: in ensemble 'limited', Request timeout expired (send the same request again in a moment)"
    assert found == {"answered", *(f"{protocol}: the server at {url} {busy}" for protocol, url in urls.items())}
    with Connection("grpc", server.grpc_url) as connection:
        assert connection.classify(connection.find_model(LIMITED), [GOOD] * 7)


@pytest.mark.server
def test_priorities_delay_and_the_size_of_a_queue(server: EmbeddedServer, asker: Asker) -> None:
    """One process decodes, so the others wait: longer than the timeout, which only delays."""
    step = f"{LATE}_preprocess"
    small = encode(1500)
    for name in ("low 1", "low 2"):  # whichever comes first is taken
        asker.send_images(name, step, *[encode(6000)] * 2)
    asker.wait_for_queue(1)
    asker.send_images("low 3", step, small)
    asker.wait_for_queue(2)
    asker.send_images("high 1", step, small, priority=1)
    asker.send_images("high 2", step, small, priority=1)
    asker.wait_for_queue(4)
    for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url)):
        with Connection(protocol, url) as connection, pytest.raises(BusyError, match="Exceeds maximum queue size"):
            connection.classify(connection.find_model(LATE), [GOOD])
    assert asker.done == []
    asker.wait_for(5)
    assert asker.errors == {}
    assert [name.split()[0] for name in asker.done] == ["low", "high", "high", "low", "low"]


@pytest.mark.server
def test_each_request_is_still_preprocessed_by_itself(server: EmbeddedServer, asker: Asker) -> None:
    step = f"{LATE}_preprocess"
    before = read_metric(server, "nv_inference_exec_count", step)
    for name in ("low 1", "low 2"):
        asker.send_images(name, step, encode(3000))
    asker.wait_for_queue(1)
    for name in ("high 1", "high 2"):
        asker.send_images(name, step, GOOD, priority=1)
    asker.wait_for(4)
    assert asker.errors == {}
    assert read_settled(lambda: read_metric(server, "nv_inference_exec_count", step), before) == before + 4


@pytest.mark.server
def test_a_full_queue_inside_the_ensemble_is_answered(server: EmbeddedServer, asker: Asker) -> None:
    """The classifier keeps two requests for 0.3 s, its queue takes no third; a busy machine may be late with that."""
    for attempt in range(5):
        for name in ("one", "two"):
            asker.send_images(f"{name} {attempt}", LATE, GOOD)
        asker.wait_for_queue(2)
        asker.send_images(f"three {attempt}", LATE, GOOD)
        asker.wait_for(3 * (attempt + 1))
        if asker.errors:
            break
    assert asker.done[3 * attempt] == f"three {attempt}"
    assert asker.errors == {
        f"three {attempt}": f"StatusCode.UNAVAILABLE in ensemble '{LATE}', [request id: <id_unknown>] "
        "Exceeds maximum queue size"
    }


@pytest.mark.server
def test_a_preferred_batch_is_run_without_waiting_for_more(server: EmbeddedServer, asker: Asker) -> None:
    classifier = f"{LATE}_classifier"

    def queued_us() -> int:
        return read_metric(server, "nv_inference_queue_duration_us", classifier)

    before = queued_us()
    for name in ("one", "two"):
        asker.send(name, classifier, "PIXELS", np.zeros((2, 32, 32, 3), np.uint8), "UINT8")
    asker.wait_for(2)
    assert asker.errors == {}
    assert read_settled(queued_us, before) - before < 300_000


@pytest.mark.server
def test_models_that_share_a_resource_take_turns(server: EmbeddedServer, asker: Asker) -> None:
    started = server.repository.parent / "started"
    started.unlink(missing_ok=True)
    asker.send("slow", "slow", "X", np.zeros((1, 4), np.float32), "FP32")
    assert wait_until(started.exists)
    asker.send("limited", f"{LIMITED}_classifier", "PIXELS", np.zeros((1, 32, 32, 3), np.uint8), "UINT8")
    asker.wait_for(2)
    assert asker.errors == {}
    assert asker.done == ["slow", "limited"]
