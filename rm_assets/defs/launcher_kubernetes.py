"""Jobs as pods of a Kubernetes cluster, through dagster-k8s' `PipesK8sClient`.

A pod carries its job's name as a label, by which it is found, also by a later run: one that was killed leaves its pod,
which the next run removes before it starts another. A removed pod gets SIGTERM, and the job saves and leaves.
Which pod waits for which GPU is the cluster's to decide: no lock of ours.
"""

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from rm_assets.defs.launching import Ending
from rm_assets.settings import LaunchSettings, SettingsError

LABEL = "rm-assets/job"
ATTEMPT = "rm-assets/attempt"
"""The label by which an attempt knows its own pod from that of a later one, which has ended it."""
GPU = "nvidia.com/gpu"
SECONDS_TO_GO = 120.0
"""How long a removed pod is waited for; `terminationGracePeriodSeconds` of its spec, 30 by default, ends it earlier."""
NO_TIME_LIMIT = 0
NOT_FOUND = 404
NO_REASON = "Error"
"""What Kubernetes says of every container that exits with another code than 0, for want of a better reason."""


@dataclass(frozen=True)
class KubernetesLauncher:
    """Pods from an image, or from a pod spec in a file, in the cluster that the kubeconfig names, or this one."""

    settings: LaunchSettings
    num_processes: int
    poll_seconds: float

    def remove_left(self, name: str) -> None:
        """Remove the job's pods, and wait until they are gone."""
        self._remove(self._api(), f"{LABEL}={name}")

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> Ending:
        """Run `python <arguments>` in a pod; raises SettingsError where there is no cluster to reach."""
        client_class = _library().PipesK8sClient
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
                base_pod_spec=self.pod_spec(),
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
            container["image"] = self.settings.image
        num_gpus = self.num_processes if self.settings.num_gpus is None else self.settings.num_gpus
        if num_gpus:
            container.setdefault("resources", {}).setdefault("limits", {}).setdefault(GPU, num_gpus)
        if self.num_processes > 1 and "volumes" not in spec:
            # a container has 64 MiB of shared memory, by which the processes of one machine exchange gradients
            spec["volumes"] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
            container["volumeMounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
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
        return list(api.list_namespaced_pod(self._namespace, label_selector=selector).items)

    def _remove(self, api: Any, selector: str) -> None:
        deadline = time.monotonic() + SECONDS_TO_GO
        asked: set[str] = set()
        while (pods := self._pods(api, selector)) and time.monotonic() < deadline:
            for pod in pods:
                if pod.metadata.name not in asked:
                    asked.add(pod.metadata.name)
                    self._delete(api, pod.metadata.name)
            time.sleep(min(self.poll_seconds, 1.0))

    def _delete(self, api: Any, pod: str) -> None:
        import kubernetes

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


def _read_spec(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        spec = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {path!r}: {_one_line(error)}") from None
    if not isinstance(spec, dict):
        raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {path!r}: no pod spec, which is a mapping with containers")
    return spec


def _one_line(error: Exception) -> str:
    reason = getattr(error, "reason", None)  # of kubernetes' ApiException, whose text has all headers
    status = getattr(error, "status", None)
    return f"{status} {reason}" if status else " ".join(str(error).split())[:300]
