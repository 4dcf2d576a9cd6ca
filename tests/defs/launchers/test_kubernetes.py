"""The launcher kubernetes with dagster-k8s' own client: an API server on loopback runs the commands of its pods."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_server import KubernetesServer
from s3 import s3_server
from support import QUICK, polite_rows, write_lines

from rm_assets.data.storage.files import file_sizes, resolve_path
from rm_assets.defs.launchers.kubernetes import KubernetesLauncher, PodNotDeletedError
from rm_assets.defs.snapshots.models import required_model
from rm_assets.settings import LaunchSettings, SettingsError
from rm_assets.training.jobs.result import read_result

pytest.importorskip("dagster_k8s")

COMMAND = ["from dagster._cli import main; main()", "asset", "materialize", "-m", "rm_assets.definitions"]
CONFIG = json.dumps({"resources": {"launcher": {"config": {"poll_seconds": 0.2}}}})
SECRET = "kingfisher-4711"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    server = KubernetesServer()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield server
    server.close()


def started(directory: Path, selection: str, **settings: Any) -> subprocess.Popen[str]:
    """A run of the command line, its output in the file `log`."""
    given = {"annotations": directory / "a.jsonl", "launcher": "kubernetes", "image": "registry/rm:1", **QUICK}
    named = {f"RM_{name.upper()}": str(value) for name, value in {**given, **settings}.items()}
    with (directory / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", *COMMAND, "--select", selection, "--config-json", CONFIG],
            env={**os.environ, **named, "DAGSTER_HOME": str(directory), "WANDB_API_KEY": SECRET},
            cwd=directory,
            stdout=log,
            stderr=log,
            text=True,
        )


@pytest.mark.soak
def test_a_model_is_trained_and_scored_in_pods_that_read_and_write_s3(
    cluster: KubernetesServer, tmp_path: Path
) -> None:
    write_lines(tmp_path / "a.jsonl", polite_rows(60))
    with s3_server() as bucket:
        where = {"storage": f"{bucket}/team", "namespace": "training", "num_processes": 2}
        assert started(tmp_path, "*reward_model_report", **where).wait(300) == 0, (tmp_path / "log").read_text()
        model = required_model(resolve_path(f"{bucket}/team"))
        assert read_result(model.directory, model.key) == model.manifest
        assert not any(name.startswith(".jobs/") for name in file_sizes(resolve_path(f"{bucket}/team")))
    names = [pod["metadata"]["name"] for pod in cluster.created]
    assert cluster.deleted == names
    training, scoring = (pod["spec"] for pod in cluster.created)
    commands = [spec["containers"][0]["command"] for spec in (training, scoring)]
    assert [command[:3] for command in commands] == [["python", "-m", "rm_assets.training"]] * 2
    assert all(command[3].startswith(f"{bucket}/team/.jobs/") for command in commands)
    assert [spec["containers"][0]["image"] for spec in (training, scoring)] == ["registry/rm:1"] * 2
    assert training["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    assert scoring["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert training["restartPolicy"] == "Never"
    assert "step 1/" in (tmp_path / "log").read_text()  # by Dagster Pipes, from the pod's log


def test_a_cancelled_run_deletes_its_pod_which_saves_first(cluster: KubernetesServer, tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", polite_rows(60))
    where = {"storage": tmp_path / "snapshots", "shared_storage": True, "num_gpus": 0}
    run = started(tmp_path, "*reward_model", **where, epochs=1_000_000, micro_batch_tokens=200)
    deadline = time.monotonic() + 120
    while "step 1/" not in (tmp_path / "log").read_text():
        assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) != 0
    assert list(cluster.pods) == []
    assert len(cluster.deleted) == 1
    assert SECRET not in json.dumps(cluster.created)
    [description] = (tmp_path / "snapshots" / "reward_model" / ".training").glob("*.json")
    assert SECRET not in description.read_text()
    assert list((tmp_path / "snapshots" / "reward_model" / ".training").glob("*/checkpoints/step-*/manifest.json"))


@pytest.fixture
def run_in_pod(
    cluster: KubernetesServer, first_run: Any, run_graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A function that trains another model on a copy of the first run's pairs, in a pod that sees their directory."""
    shutil.copytree(first_run[0]["storage"], tmp_path / "storage")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", os.environ["KUBECONFIG"])
    where = {"launcher": "kubernetes", "image": "rm:1", "shared_storage": True, "storage": str(tmp_path / "storage")}
    return lambda **settings: run_graph(selection="reward_model", **{**first_run[0], **where, **settings})


def test_a_model_is_trained_in_a_pod_that_sees_the_storage(cluster: KubernetesServer, run_in_pod: Any) -> None:
    result = run_in_pod(seed=4, num_gpus=0)
    assert result.success, result.get_step_failure_events()
    [event] = result.asset_materializations_for_node("reward_model")
    assert event.metadata["trained_now"].value is True
    [pod] = cluster.created
    assert cluster.deleted == [pod["metadata"]["name"]]
    [container] = pod["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "rm_assets.training"]
    assert "resources" not in container


def test_what_a_pod_ended_with_is_the_reason(cluster: KubernetesServer, run_in_pod: Any) -> None:
    cluster.ends_with = 137
    [failure] = run_in_pod(seed=3).get_step_failure_events()
    told = "the training job did not finish: it was ended by SIGKILL, OOMKilled (out of memory?): lower micro_batch_"
    assert told in failure.step_failure_data.error_display_string
    assert cluster.deleted == [pod["metadata"]["name"] for pod in cluster.created] != []


def test_an_attempt_that_ends_leaves_the_pod_of_a_later_one(
    cluster: KubernetesServer, run_in_pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, cluster.ends_with = cluster.create, 1

    def create_two(body: dict[str, Any]) -> dict[str, Any]:
        made = create(body)
        labels = {**body["metadata"]["labels"], "rm-assets/attempt": "later"}
        create({"metadata": {"name": "later", "labels": labels}, "spec": body["spec"]})  # by another machine
        return made

    monkeypatch.setattr(cluster, "create", create_two)
    assert not run_in_pod(seed=8).success
    assert cluster.deleted == [cluster.created[0]["metadata"]["name"]]
    assert "later" in cluster.pods


def test_a_reason_of_an_attempt_before_is_not_told_again(
    cluster: KubernetesServer, tmp_path: Path, run_in_pod: Any
) -> None:
    cluster.ends_with = 1
    [failure] = run_in_pod(seed=5).get_step_failure_events()
    assert "the training job failed with exit code 1;" in failure.step_failure_data.error_display_string
    trainings = tmp_path / "storage" / "reward_model" / ".training"
    unfinished = [path for path in trainings.iterdir() if path.is_dir()]
    assert unfinished != []
    for working in unfinished:
        (working / "error.txt").write_text("an old story")
    [failure] = run_in_pod(seed=5).get_step_failure_events()
    assert "the training job failed with exit code 1;" in failure.step_failure_data.error_display_string


@pytest.mark.parametrize(("launcher", "library"), [("kubernetes", "dagster_k8s"), ("ray", "dagster_ray")])
def test_a_library_that_is_missing_is_told_with_what_to_install(
    run_in_pod: Any, monkeypatch: pytest.MonkeyPatch, launcher: str, library: str
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, library, None)
    [failure] = run_in_pod(seed=6, launcher=launcher).get_step_failure_events()
    told = f"launcher (or RM_LAUNCHER) is '{launcher}', which is not installed: pip install 'rm_assets[{launcher}]'"
    assert told in failure.step_failure_data.error_display_string


def test_what_a_killed_run_left_is_removed_and_other_pods_stay(
    cluster: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", os.environ["KUBECONFIG"])
    container = {"name": "c", "command": ["python", "-c", "import time; time.sleep(600)"], "env": []}
    for pod, job in (("left", "mine"), ("other", "yours")):
        metadata = {"name": pod, "labels": {"rm-assets/job": job}}
        cluster.create({"metadata": metadata, "spec": {"containers": [container]}})
    launcher = KubernetesLauncher(LaunchSettings(image="rm:2"), num_processes=1, poll_seconds=0.1)
    launcher.remove_leftovers("mine")
    assert list(cluster.pods) == ["other"]
    assert cluster.deleted == ["left"]


def test_a_pod_is_made_from_the_spec_of_a_file(tmp_path: Path) -> None:
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    spec = {
        "containers": [{"env": [secret], "volumeMounts": [{"name": "storage", "mountPath": "/storage"}]}],
        "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": "rm"}}],
        "nodeSelector": {"gpu": "h100"},
    }
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(spec))
    launcher = KubernetesLauncher(LaunchSettings(image="rm:2", pod_spec=str(path)), num_processes=4, poll_seconds=1)
    made = launcher.pod_spec()
    [container] = made["containers"]
    assert container["image"] == "rm:2"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    assert (container["env"], made["nodeSelector"]) == ([secret], {"gpu": "h100"})
    memory = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    assert made["volumes"] == [{"name": "storage", "persistentVolumeClaim": {"claimName": "rm"}}, memory]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/storage", "/dev/shm"]


def test_what_the_spec_of_a_file_names_itself_stays(tmp_path: Path) -> None:
    container = {
        "image": "mine:1",
        "resources": {"limits": {"nvidia.com/gpu": 2}},
        "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}]}
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(spec))
    launcher = KubernetesLauncher(LaunchSettings(image="rm:2", pod_spec=str(path)), num_processes=4, poll_seconds=1)
    assert launcher.pod_spec() == spec


def test_processes_of_one_pod_share_more_memory_than_a_container_has(tmp_path: Path) -> None:
    made = KubernetesLauncher(LaunchSettings(image="rm:2"), num_processes=2, poll_seconds=1).pod_spec()
    assert made["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    assert made["containers"][0]["volumeMounts"] == [{"name": "shared-memory", "mountPath": "/dev/shm"}]


WRONG_SPECS = [
    "- a list",
    "a: [b",
    None,
    "containers: []",
    "containers:",
    "containers: {name: a}",
    "containers: [{resources: null}]",
    "containers: [{resources: {limits: null}}]",
    "volumes: null",
]


@pytest.mark.parametrize("content", WRONG_SPECS)
def test_a_pod_spec_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "pod.yaml"
    if content is not None:
        path.write_text(content)
    launcher = KubernetesLauncher(LaunchSettings(pod_spec=str(path)), num_processes=1, poll_seconds=1)
    with pytest.raises(SettingsError, match=r"pod_spec \(or RM_POD_SPEC\) is .*pod.yaml") as error:
        launcher.remove_leftovers("job")  # with no cluster to ask
    assert "\n" not in str(error.value)


LEAKY_SPECS = {
    "password: CANARY: x": "not valid YAML, line 1",
    "containers:\n- env: [CANARY": "not valid YAML, line 2",
    "a: 1\npassword: !CANARY x": "not valid YAML, line 2",
    "password: *CANARY": "not valid YAML, line 1",
    "port: !!int CANARY": "not valid YAML (ValueError)",
    'password: "\\CANARY"': "not valid YAML, line 1",
    "containers: {name: CANARY}": "containers must be a list of at least one mapping",
    "containers: [{resources: {limits: CANARY}}]": "resources must be a mapping, and limits in it, too",
    "volumes: [{name: a}, CANARY]": "volumes must be a list of mappings",
    "containers: [{env: [CANARY]}]": "not a pod spec of Kubernetes (Attribute env[0] of type V1EnvVar must be a dict)",
    "containers: [{env: [{CANARY: a}]}]": "not a pod spec of Kubernetes (Unexpected keys in model class V1EnvVar)",
    "securityContext: {runAsUser: CANARY}": "not a pod spec of Kubernetes (ValueError)",
    "containers: [{env: [{value: CANARY}]}]": (
        "not a pod spec of Kubernetes (Invalid value for `name`, must not be `None`)"
    ),
    "CANARY: " + "[" * 2_000: "not valid YAML (RecursionError)",
}


@pytest.mark.parametrize("content", LEAKY_SPECS, ids=lambda content: content[:40])
def test_a_wrong_pod_spec_is_told_by_its_place_and_never_by_what_it_holds(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(content)
    launcher = KubernetesLauncher(LaunchSettings(image="rm:2", pod_spec=str(path)), num_processes=1, poll_seconds=1)
    with pytest.raises(SettingsError) as error:
        launcher.pod_spec()
    assert str(error.value) == f"pod_spec (or RM_POD_SPEC) is {str(path)!r}: {LEAKY_SPECS[content]}"


def test_a_damaged_kubeconfig_is_told_without_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubeconfig").write_text("users:\n- token: CANARY: x")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError, match=r"^launcher .or RM_LAUNCHER. is 'kubernetes': the kubeconfig") as error:
        KubernetesLauncher(LaunchSettings(image="rm:2"), num_processes=1, poll_seconds=1).remove_leftovers("mine")
    assert str(error.value).endswith("cannot be read: not valid YAML, line 2")


def test_a_whole_manifest_is_no_pod_spec(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text("apiVersion: v1\nkind: Pod\nspec: {containers: [{image: j}]}")
    launcher = KubernetesLauncher(LaunchSettings(pod_spec=str(path)), num_processes=1, poll_seconds=1)
    with pytest.raises(SettingsError, match="a whole manifest: give only the part below spec:"):
        launcher.pod_spec()


def test_a_cluster_that_does_not_answer_is_told(cluster: KubernetesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", os.environ["KUBECONFIG"])
    cluster.close()
    with pytest.raises(SettingsError, match=r"^the Kubernetes cluster does not answer: ") as error:
        KubernetesLauncher(LaunchSettings(image="rm:2"), num_processes=1, poll_seconds=0.1).remove_leftovers("mine")
    assert "\n" not in str(error.value)


def test_a_pod_that_stays_is_told(cluster: KubernetesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", os.environ["KUBECONFIG"])
    monkeypatch.setattr("rm_assets.defs.launchers.kubernetes.SECONDS_TO_DELETE", 0.0)
    monkeypatch.setattr("rm_assets.defs.launchers.kubernetes.SECONDS_AFTER_GRACE", 1.0)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"
    )
    container = {"name": "c", "command": ["python", "-c", stubborn], "env": []}
    metadata = {"name": "left", "labels": {"rm-assets/job": "mine"}}
    cluster.create({"metadata": metadata, "spec": {"containers": [container]}})
    deadline = time.monotonic() + 30
    while not cluster.pods["left"].lines:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher = KubernetesLauncher(LaunchSettings(image="rm:2"), num_processes=1, poll_seconds=0.1)
    with pytest.raises(PodNotDeletedError, match=r"the pod 'left' of an earlier run of this job is still there"):
        launcher.remove_leftovers("mine")
