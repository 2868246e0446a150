"""Bulk work on Ray: the same rows, once, whatever is killed. Ray is an extra: without it only its absence is tested."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import parquet

from generator.bulk import ray_engine, run
from generator.bulk.ray_engine import RayEngine
from generator.bulk.results import open_results
from generator.bulk.run import run_bulk
from generator.bulk.sources import open_source
from generator.cli import main
from generator.errors import BulkError, MissingDependencyError
from tests.bulk_steps import TextStep, refuse
from tests.server_parts import wait_until

ROOT = Path(__file__).parents[1]
IMAGES = 600
# it warns of its own: deprecated parts of pandas, and sockets and files that it leaves to the end
pytestmark = pytest.mark.filterwarnings("ignore")

# An own process: what Ray leaves open would be the whole run's. It prints its process id before it begins.
_DRIVER = """
import functools, logging, os, sys
from pathlib import Path
import ray
from generator.bulk.ray_engine import RayEngine
from generator.bulk.results import open_results
from generator.bulk.run import run_bulk
from generator.bulk.sources import open_source
from tests.bulk_steps import TextStep
photos, out, word, at, once = sys.argv[1:]
if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             object_store_memory=100 << 20)
    steps = [functools.partial(TextStep, word, at, Path(once) if once else None)] * 2
    with open_results(Path(out), {}, rows_per_part=50) as results:
        run_bulk(open_source(photos), results, steps, batch_size=10, engine=RayEngine())
"""


@pytest.fixture(scope="module")
def ray_on_two_cpus() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is an extra")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100 << 20
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files whose text is their number, the last one's name no UTF-8; one is gone."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES - 1):
        (folder / f"{number:05d}.jpg").write_text(str(number))
    Path(os.fsdecode(os.fsencode(folder) + b"/99999\xff.jpg")).write_text(str(IMAGES - 1))
    (folder / "00007.jpg").unlink()
    (folder / "00007.jpg").symlink_to("/proc/self/mem")  # it is there, and cannot be read
    return folder


def answer(photos: Path, out: Path, *steps: Any, **options: Any) -> None:
    with open_results(out, {}, rows_per_part=100) as results:
        run_bulk(open_source(str(photos)), results, steps, batch_size=10, engine=RayEngine(), **options)


def check_rows(out: Path) -> None:
    rows = parquet.read_table(out).to_pylist()
    assert [row["item"] for row in rows] == list(range(IMAGES))
    for number, row in enumerate(rows):
        if number == 7:
            assert row["error"].startswith("cannot be read: ")
            assert row["classes"] is None
        else:
            assert row["classes"][0]["label"] == str(number)
            assert row["error"] is None
    assert rows[-1]["path"].endswith("99999\\udcff.jpg")


def test_without_ray(
    tmp_path: Path, built_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"the package ray\[data\] is not installed"):
        RayEngine()
    arguments = ["classify-all", str(tmp_path), "--out", str(tmp_path / "out"), "--repository", str(built_demo)]
    assert main([*arguments, "--engine", "ray"]) == 1
    assert "pip install -e '.[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_local_engine_began_goes_on(ray_on_two_cpus: Any, photos: Path, tmp_path: Path) -> None:
    steps = [functools.partial(TextStep, "300", "raise")]
    with open_results(tmp_path / "out", {}, rows_per_part=100) as results:
        with pytest.raises(BulkError, match="the GPU is gone"):
            run_bulk(open_source(str(photos)), results, steps, batch_size=10)
        assert 0 < results.finished.items <= 300
    begun = {path.name for path in (tmp_path / "out").glob("part-*")}
    answer(photos, tmp_path / "out", TextStep, TextStep)
    check_rows(tmp_path / "out")
    assert begun < {path.name for path in (tmp_path / "out").glob("part-*")}


def test_every_image_once_and_in_order(ray_on_two_cpus: Any, photos: Path, tmp_path: Path) -> None:
    answer(photos, tmp_path / "out", TextStep, TextStep)
    check_rows(tmp_path / "out")


def test_windows_follow_each_other_and_actors_are_of_the_last_step(
    ray_on_two_cpus: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_WINDOW", 20)
    answer(photos, tmp_path / "out", refuse, TextStep)  # the last share of requests in flight is the smallest
    check_rows(tmp_path / "out")


def test_errors_of_steps_are_theirs(ray_on_two_cpus: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="no plan") as caught:
        answer(photos, tmp_path / "out", refuse)
    assert caught.value.hint == "build one"


@pytest.mark.parametrize("per_gpu", range(1, 9))
def test_all_actors_of_a_gpu_fit_on_it(ray_on_two_cpus: Any, per_gpu: int) -> None:
    """Ray rounds the share of each to a ten thousandth."""
    share = round(RayEngine(per_gpu=per_gpu)._gpus * 10_000)
    assert per_gpu * share <= 10_000 < (per_gpu + 1) * share


def test_what_ray_has_too_little_of_is_said(ray_on_two_cpus: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="3 workers take a CPU of Ray's each, and it has 2") as caught:
        answer(photos, tmp_path / "out", TextStep, TextStep, TextStep)
    assert caught.value.fields == {"workers": 2}


def test_silence_is_said(
    ray_on_two_cpus: Any,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import functools

    monkeypatch.setattr(run, "_SILENCE_S", 0.9)
    answer(photos, tmp_path / "out", functools.partial(TextStep, "0", "sleep"))
    assert "no image was finished for 1 s; at work: Ray, with " in caplog.text
    check_rows(tmp_path / "out")


@contextlib.contextmanager
def drive(photos: Path, out: Path, *, word: str = "", at: str = "", once: str = "") -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip("ray", reason="Ray is an extra")
    script = out.parent / "drive.py"
    script.write_text(_DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(script), str(photos), str(out), word, at, once]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_driver_goes_on_where_it_was(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with drive(photos, out, word="4", at="sleep") as process:
        assert wait_until(lambda: len(list(out.glob("part-*"))) >= 2, timeout_s=60)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    for one in children:  # two agents of Ray's outlive it
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    with drive(photos, out) as process:
        _, said = process.communicate(timeout=90)
        assert process.returncode == 0, said
    check_rows(out)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept  # nothing is done twice


def test_a_killed_worker_s_images_are_done_again(photos: Path, tmp_path: Path) -> None:
    with drive(photos, tmp_path / "out", word="300", at="kill", once=str(tmp_path / "killed")) as process:
        _, said = process.communicate(timeout=90)
        assert process.returncode == 0, said
    assert (tmp_path / "killed").exists()
    check_rows(tmp_path / "out")
