"""Jobs as pods of a Kubernetes cluster, through dagster-k8s' `PipesK8sClient`.

A pod carries its job's name as a label, by which it is found, also by a later run: one that was killed leaves its pod,
which the next run removes before it starts another. A removed pod gets SIGTERM, and the job saves and leaves.
Which pod waits for which GPU is the cluster's to decide: no lock of ours is held for that.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from rm_assets.defs.launching import Ending
from rm_assets.defs.stop_requests import ending_a_job
from rm_assets.settings import LaunchSettings, SettingsError

LABEL = "rm-assets/job"
ATTEMPT = "rm-assets/attempt"
"""The label by which an attempt knows its own pod from that of a later one, which has ended it."""
GPU = "nvidia.com/gpu"
SECONDS_TO_GO = 120.0
"""How long a removed pod is waited for at least; `terminationGracePeriodSeconds` of its spec is 30 by default."""
SECONDS_AFTER_GRACE = 30.0
NO_TIME_LIMIT = 0
SHARED_MEMORY = "/dev/shm"
NOT_FOUND = 404
NO_REASON = "Error"
"""What Kubernetes says of every container that exits with another code than 0, for want of a better reason."""


class PodStaysError(RuntimeError):
    """A pod that was removed and has not gone: two jobs must not write one training."""


@dataclass(frozen=True)
class KubernetesLauncher:
    """Pods from an image, or from a pod spec in a file, in the cluster that the kubeconfig names, or this one."""

    settings: LaunchSettings
    num_processes: int
    poll_seconds: float

    def remove_left(self, name: str) -> None:
        """Remove the job's pods, and wait until they are gone; raises PodStaysError where one is not."""
        _read_spec(self.settings.pod_spec)  # which is to be told of first, with or without a cluster
        if left := self._remove(self._api(), f"{LABEL}={name}"):
            raise PodStaysError(
                f"the pod {left[0]!r} of an earlier run of this job is still there after its grace period: "
                f"find out why (kubectl describe pod {left[0]}), remove it and run again"
            )

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> Ending:
        """Run `python <arguments>` in a pod; raises SettingsError where there is no cluster to reach."""
        client_class, spec = _patient_client(), self.pod_spec()
        api = self._api()
        client = client_class(poll_interval=self.poll_seconds)
        labels = {LABEL: name, ATTEMPT: uuid.uuid4().hex}
        own = f"{ATTEMPT}={labels[ATTEMPT]}"
        try:
            client.run(
                context=context,
                command=["python", *arguments],
                namespace=self._namespace,
                base_pod_meta={"labels": labels},
                base_pod_spec=spec,
                pod_wait_timeout=NO_TIME_LIMIT,
                delete_pod_on_completion=False,  # how it ended is to be seen first
            )
        except Exception as error:  # of the client, of Kubernetes or of the way there: the pod tells more, if it can
            return self._ending(api, own, error)
        finally:
            self._remove(api, own)
        return Ending(code=0)

    def pod_spec(self) -> dict[str, Any]:
        """The spec of the file, with image, GPUs and shared memory, where it does not say otherwise itself."""
        spec = _read_spec(self.settings.pod_spec)
        container = spec.setdefault("containers", [{}])[0]
        if self.settings.image:
            container.setdefault("image", self.settings.image)
        num_gpus = self.num_processes if self.settings.num_gpus is None else self.settings.num_gpus
        if num_gpus:
            container.setdefault("resources", {}).setdefault("limits", {}).setdefault(GPU, num_gpus)
        mounts = container.get("volumeMounts", [])
        if self.num_processes > 1 and all(mount.get("mountPath") != SHARED_MEMORY for mount in mounts):
            # a container has 64 MiB of shared memory, by which the processes of one machine exchange gradients
            volume = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
            spec["volumes"] = [*spec.get("volumes", []), volume]
            container["volumeMounts"] = [*mounts, {"name": "shared-memory", "mountPath": SHARED_MEMORY}]
        return spec

    @property
    def _namespace(self) -> str:
        from dagster_k8s.utils import detect_current_namespace

        return self.settings.namespace or detect_current_namespace(None) or "default"

    def _api(self) -> Any:
        """Kubernetes' core API by the configuration that `PipesK8sClient` takes: in a pod, of its own cluster."""
        _library()
        import kubernetes

        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                kubernetes.config.load_incluster_config()
            else:
                kubernetes.config.load_kube_config()
        except kubernetes.config.ConfigException as error:
            raise SettingsError(f"launcher (or RM_LAUNCHER) is 'kubernetes': {_one_line(error)}") from None
        return kubernetes.client.CoreV1Api()

    def _pods(self, api: Any, selector: str) -> list[Any]:
        with _answering():
            return list(api.list_namespaced_pod(self._namespace, label_selector=selector).items)

    @ending_a_job()
    def _remove(self, api: Any, selector: str) -> list[str]:
        """Remove pods and wait for them; returns the names of those that are still there after their time."""
        begun, seconds = time.monotonic(), SECONDS_TO_GO
        asked: set[str] = set()
        while (pods := self._pods(api, selector)) and time.monotonic() < begun + seconds:
            for pod in pods:
                grace = pod.spec.termination_grace_period_seconds or 0
                seconds = max(seconds, grace + SECONDS_AFTER_GRACE)
                if pod.metadata.name not in asked:
                    asked.add(pod.metadata.name)
                    self._delete(api, pod.metadata.name)
            time.sleep(min(self.poll_seconds, 1.0))
        return [pod.metadata.name for pod in pods]

    def _delete(self, api: Any, pod: str) -> None:
        import kubernetes

        with _answering():
            try:
                api.delete_namespaced_pod(pod, self._namespace)
            except kubernetes.client.ApiException as error:
                if error.status != NOT_FOUND:
                    raise

    def _ending(self, api: Any, selector: str, error: Exception) -> Ending:
        told = _one_line(error)
        try:
            pods = self._pods(api, selector)
        except Exception:  # the API is out of reach, which the error says already
            return Ending(code=1, told=told)
        states = [status.state for pod in pods for status in pod.status.container_statuses or []]
        for ended in (state.terminated for state in states if state.terminated):
            if ended.exit_code:
                return Ending(code=ended.exit_code, told="" if ended.reason == NO_REASON else ended.reason or "")
        return Ending(code=1, told=told)


def _library() -> Any:
    try:
        import dagster_k8s
    except ImportError:
        raise SettingsError(
            "launcher (or RM_LAUNCHER) is 'kubernetes', which is not installed: pip install 'rm_assets[kubernetes]'"
        ) from None
    return dagster_k8s


def _patient_client() -> Any:
    """The class `PipesK8sClient`, which waits as long as the pod waits for its GPUs; its own limit is five hours."""
    library = _library()
    from dagster_k8s.client import WaitForPodState

    class PatientClient(library.PipesK8sClient):  # type: ignore[name-defined, misc]
        @contextlib.contextmanager
        def consume_pod_logs(
            self, context: Any, client: Any, namespace: str, pod_name: str, **more: Any
        ) -> Iterator[None]:
            client.wait_for_pod(
                pod_name,
                namespace,
                wait_for_state=WaitForPodState.Ready,
                wait_timeout=NO_TIME_LIMIT,
                pod_launch_timeout=NO_TIME_LIMIT,
                wait_time_between_attempts=self.poll_interval,
                ignore_containers=more.get("ignore_containers"),
            )
            with super().consume_pod_logs(
                context=context, client=client, namespace=namespace, pod_name=pod_name, **more
            ):
                yield

    return PatientClient


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Errors of the cluster as SettingsErrors."""
    import kubernetes
    import urllib3

    try:
        yield
    except kubernetes.client.ApiException as error:
        raise SettingsError(f"the Kubernetes cluster refuses: {_one_line(error)}") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise SettingsError(f"the Kubernetes cluster does not answer: {_one_line(error)}") from None


def _read_spec(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        spec = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {path!r}: {_one_line(error)}") from None
    if problem := _problem(spec):
        raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {path!r}: {problem}")
    return dict(spec)


def _problem(spec: Any) -> str | None:
    """Why this is no pod spec to add to, if it is none; what else is wrong with it, the cluster tells."""
    if not isinstance(spec, dict):
        return "no pod spec, which is a mapping with containers"
    if "spec" in spec or "kind" in spec:
        return "a whole manifest: give what stands under spec:"
    containers = spec.get("containers", [{}])
    if not isinstance(containers, list) or not containers or not all(isinstance(found, dict) for found in containers):
        return f"containers is {containers!r}, not a list of at least one mapping"
    container = containers[0]
    resources = container.get("resources", {})
    if not isinstance(resources, dict) or not isinstance(resources.get("limits", {}), dict):
        return f"resources is {resources!r}, not a mapping with a mapping limits"
    for name, found in (("volumes", spec.get("volumes", [])), ("volumeMounts", container.get("volumeMounts", []))):
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            return f"{name} is {found!r}, not a list of mappings"
    return None


def _one_line(error: Exception) -> str:
    reason = getattr(error, "reason", None)  # of kubernetes' ApiException, whose text has all headers
    status = getattr(error, "status", None)
    return f"{status} {reason}" if status else " ".join(str(error).split())[:300]
