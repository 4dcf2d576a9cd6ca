"""Shards over a Ray cluster of two nodes: the same snapshots, whatever dies meanwhile, and errors as they are."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import s3_server
from support import run_stages

from rm_assets.data.compute.ray_cluster import EngineError, map_on_ray
from rm_assets.data.storage.files import StorageError, resolve_path
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.settings import Settings, SettingsError

_NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Any]:
    """Two nodes of one core each, on loopback, which see the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback alone; read when ray is imported
        import ray
        from ray.cluster_utils import Cluster

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        nodes = Cluster(initialize_head=True, head_node_args=_NODE)
        nodes.add_node(**_NODE)
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def node_of(directory: str) -> str:
    """The node that this task is on; it waits there until a task of another node has come, too."""
    import ray

    node = str(ray.get_runtime_context().get_node_id())
    (Path(directory) / node).touch()
    deadline = time.monotonic() + 60
    while len(list(Path(directory).iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return node


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    """What this process makes of the sample."""
    return list(run_stages(Settings(storage=str(tmp_path_factory.mktemp("local")), num_workers=1)).values())


@pytest.mark.parametrize("remote", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["directory", "s3"])
def test_two_nodes_give_the_snapshots_of_a_local_run(
    cluster: Any, alone: list[Snapshot], bucket: str, tmp_path: Path, remote: bool
) -> None:
    storage = f"{bucket}/storage" if remote else str(tmp_path)
    together = list(run_stages(Settings(storage=storage, engine="ray")).values())
    assert [snapshot.manifest.shards for snapshot in together] == [snapshot.manifest.shards for snapshot in alone]
    assert [snapshot.name for snapshot in together] == [snapshot.name for snapshot in alone]
    assert all(snapshot.num_new_shards > 1 for snapshot in together)


def test_tasks_go_to_all_nodes_and_their_results_come_in_order(cluster: Any, tmp_path: Path) -> None:
    nodes, staging = tmp_path / "nodes", tmp_path / "staging"
    nodes.mkdir()
    staging.mkdir()
    assert len(set(map_on_ray(node_of, [str(nodes)] * 8, staging, 0))) == 2
    assert list(map_on_ray(str, list(range(20)), staging, 3)) == [str(number) for number in range(20)]
    assert list(staging.iterdir()) == []


def refuse(number: int) -> int:
    if number == 3:
        raise SettingsError("max_length (or RM_MAX_LENGTH) is 3: too few")
    return number


def test_an_error_of_a_task_comes_back_as_it_was_raised(cluster: Any, tmp_path: Path) -> None:
    results = map_on_ray(refuse, list(range(6)), tmp_path, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SettingsError) as error:
        next(results)
    assert str(error.value) == "max_length (or RM_MAX_LENGTH) is 3: too few"
    assert error.value.__cause__ is None


def test_errors_while_other_tasks_end_leave_this_process_alive(cluster: Any, tmp_path: Path) -> None:
    for _ in range(100):
        with pytest.raises(SettingsError):
            list(map_on_ray(refuse, list(range(6)), tmp_path, 2))


def die_once(marker: str) -> str:
    if marker and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker


def test_a_task_whose_worker_is_killed_is_started_anew(cluster: Any, tmp_path: Path) -> None:
    markers = ["", str(tmp_path / "marker"), ""]
    assert list(map_on_ray(die_once, markers, tmp_path / "staging", 0)) == markers
    assert (tmp_path / "marker").exists()


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_every_worker_ends_the_run_with_one_line(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Ray lost a task 4 times \(.*lower shard_bytes or num_workers") as error:
        list(map_on_ray(die, [1], tmp_path, 0))
    assert "\n" not in str(error.value)


def test_a_storage_that_a_node_does_not_see_is_named(cluster: Any) -> None:
    staging = resolve_path("memory://storage/asset/.staging")  # which is one per process
    with pytest.raises(StorageError, match=r"does not see the storage 'memory:.*storage': give all nodes one"):
        list(map_on_ray(str, [1], staging, 0))


def slow(number: int) -> int:
    time.sleep(1)
    return number


def test_tasks_of_a_node_that_is_lost_go_to_another(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(**_NODE)
    results = map_on_ray(slow, list(range(9)), tmp_path, 6)
    first = next(results)
    cluster.remove_node(node, allow_graceful=False)
    assert [first, *results] == list(range(9))


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "not an address")
    with pytest.raises(EngineError, match=r"RAY_ADDRESS is 'not an address': "):
        list(map_on_ray(str, [1], tmp_path, 0))
