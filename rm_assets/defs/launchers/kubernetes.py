"""Jobs as pods of a Kubernetes cluster, through dagster-k8s' `PipesK8sClient`.

A pod has the job's name as a label, by which a later run finds and deletes the pod that a killed run left. A deleted
pod gets SIGTERM, at which the job saves and exits. The cluster schedules the GPUs, so no lock is held here.
"""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from rm_assets.addresses import mask_credentials
from rm_assets.defs.launchers.base import JobExit
from rm_assets.defs.runs.cancellation import ending_job
from rm_assets.settings import LaunchSettings, SettingsError

LABEL = "rm-assets/job"
ATTEMPT = "rm-assets/attempt"
"""The label that distinguishes this attempt's pod from that of a later one, which replaced it."""
GPU = "nvidia.com/gpu"
SECONDS_TO_DELETE = 120.0
"""The least time a deleted pod has to go; `terminationGracePeriodSeconds` of its spec is 30 by default."""
SECONDS_AFTER_GRACE = 30.0
NO_TIME_LIMIT = 0
SHARED_MEMORY = "/dev/shm"
NOT_FOUND = 404
NO_REASON = "Error"
"""Kubernetes' reason for any exit code but 0 when it knows no better one."""
_REFUSALS = re.compile(
    r"Attribute \w+(\[\d+\])? of type \w+ must be a dict|Unexpected keys in model class \w+"
    r"|Invalid value for `\w+`, must not be `None`"
)
"""The parts of dagster-k8s' messages that name a field and show no value."""


class PodNotDeletedError(RuntimeError):
    """A deleted pod is still there: two jobs must not write the same training."""


@dataclass(frozen=True)
class KubernetesLauncher:
    """Pods from an image or a pod spec, in the kubeconfig's cluster or, inside a pod, in its own."""

    settings: LaunchSettings
    num_processes: int
    poll_seconds: float

    def remove_leftovers(self, name: str) -> None:
        """Delete the job's pods and wait until they are gone; raises PodNotDeletedError if one is not."""
        _read_spec(self.settings.pod_spec)  # its errors first, with or without a cluster
        if left := self._delete_pods(self._api(), f"{LABEL}={name}"):
            raise PodNotDeletedError(
                f"the pod {left[0]!r} of an earlier run of this job is still there after its grace period: "
                f"find out why (kubectl describe pod {left[0]}), remove it and run again"
            )

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> JobExit:
        """Run `python <arguments>` in a pod; raises SettingsError if no cluster can be reached."""
        client_class, spec = _client_without_time_limit(), self.pod_spec()
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
                delete_pod_on_completion=False,  # only after its exit code is read
            )
        except Exception as error:  # of the client, Kubernetes or the network: the pod knows more
            return self._job_exit(api, own, error)
        finally:
            self._delete_pods(api, own)
        return JobExit(code=0)

    def pod_spec(self) -> dict[str, Any]:
        """The pod spec of the file; image, GPUs and shared memory are added unless it has them."""
        spec = _read_spec(self.settings.pod_spec)
        if problem := _model_problem(spec):
            raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {self.settings.pod_spec!r}: {problem}")
        container = spec.setdefault("containers", [{}])[0]
        if self.settings.image:
            container.setdefault("image", self.settings.image)
        num_gpus = self.num_processes if self.settings.num_gpus is None else self.settings.num_gpus
        if num_gpus:
            container.setdefault("resources", {}).setdefault("limits", {}).setdefault(GPU, num_gpus)
        mounts = container.get("volumeMounts", [])
        if self.num_processes > 1 and all(mount.get("mountPath") != SHARED_MEMORY for mount in mounts):
            # the processes of a pod exchange gradients through shared memory, of which a container has 64 MiB
            volume = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
            spec["volumes"] = [*spec.get("volumes", []), volume]
            container["volumeMounts"] = [*mounts, {"name": "shared-memory", "mountPath": SHARED_MEMORY}]
        return spec

    @property
    def _namespace(self) -> str:
        from dagster_k8s.utils import detect_current_namespace

        return self.settings.namespace or detect_current_namespace(None) or "default"

    def _api(self) -> Any:
        """Kubernetes' core API, configured as `PipesK8sClient` configures its own."""
        _library()
        import kubernetes

        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                kubernetes.config.load_incluster_config()
            else:
                kubernetes.config.load_kube_config()
        except Exception as error:  # a damaged kubeconfig raises errors of YAML, base64 and others
            is_own = isinstance(error, kubernetes.config.ConfigException)
            problem = _one_line(error) if is_own else f"the kubeconfig cannot be read: {_yaml_problem(error)}"
            raise SettingsError(f"launcher (or RM_LAUNCHER) is 'kubernetes': {problem}") from None
        return kubernetes.client.CoreV1Api()

    def _pods(self, api: Any, selector: str) -> list[Any]:
        with _translate_api_errors():
            return list(api.list_namespaced_pod(self._namespace, label_selector=selector).items)

    @ending_job()
    def _delete_pods(self, api: Any, selector: str) -> list[str]:
        """Delete pods and wait for them; returns the names of those still there after their grace period."""
        begun, seconds = time.monotonic(), SECONDS_TO_DELETE
        deleted: set[str] = set()
        while (pods := self._pods(api, selector)) and time.monotonic() < begun + seconds:
            for pod in pods:
                grace = pod.spec.termination_grace_period_seconds or 0
                seconds = max(seconds, grace + SECONDS_AFTER_GRACE)
                if pod.metadata.name not in deleted:
                    deleted.add(pod.metadata.name)
                    self._delete(api, pod.metadata.name)
            time.sleep(min(self.poll_seconds, 1.0))
        return [pod.metadata.name for pod in pods]

    def _delete(self, api: Any, pod: str) -> None:
        import kubernetes

        with _translate_api_errors():
            try:
                api.delete_namespaced_pod(pod, self._namespace)
            except kubernetes.client.ApiException as error:
                if error.status != NOT_FOUND:
                    raise

    def _job_exit(self, api: Any, selector: str, error: Exception) -> JobExit:
        """The exit code and reason of the pod's container, else the client's error."""
        client_error = JobExit(code=1, detail=_one_line(error))
        try:
            pods = self._pods(api, selector)
        except Exception:  # the API is out of reach, as the client's error says already
            return client_error
        states = [status.state for pod in pods for status in pod.status.container_statuses or []]
        for ended in (state.terminated for state in states if state.terminated):
            if ended.exit_code:
                return JobExit(code=ended.exit_code, detail="" if ended.reason == NO_REASON else ended.reason or "")
        return client_error


def _library() -> Any:
    try:
        import dagster_k8s
    except ImportError:
        raise SettingsError(
            "launcher (or RM_LAUNCHER) is 'kubernetes', which is not installed: pip install 'rm_assets[kubernetes]'"
        ) from None
    return dagster_k8s


def _client_without_time_limit() -> Any:
    """A `PipesK8sClient` without its limit of five hours, as a pod may wait longer for its GPUs."""
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
def _translate_api_errors() -> Iterator[None]:
    """Raise errors of the cluster as SettingsErrors."""
    import kubernetes
    import urllib3

    try:
        yield
    except kubernetes.client.ApiException as error:
        raise SettingsError(f"the Kubernetes cluster refused: {_one_line(error)}") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise SettingsError(f"the Kubernetes cluster does not answer: {_one_line(error)}") from None


def _read_spec(path: str | None) -> dict[str, Any]:
    """The pod spec of a file. It may hold secrets, so errors name the place and never quote the content."""
    if path is None:
        return {}
    try:
        spec = yaml.safe_load(Path(path).read_bytes())
        problem = _shape_problem(spec)
    except OSError as error:
        problem = _one_line(error)
    except Exception as error:  # YAML's constructors raise errors of many kinds
        problem = _yaml_problem(error)
    if problem:
        raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {path!r}: {problem}")
    return dict(spec)


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"not valid YAML, line {mark.line + 1}" if mark else f"not valid YAML ({type(error).__name__})"


def _shape_problem(spec: Any) -> str:
    """Why nothing can be added to this as a pod spec, or ""; other mistakes are found by `_model_problem`."""
    if not isinstance(spec, dict):
        return "not a pod spec, which is a mapping with containers"
    if "spec" in spec or "kind" in spec:
        return "a whole manifest: give only the part below spec:"
    containers = spec.get("containers", [{}])
    if not isinstance(containers, list) or not containers or not all(isinstance(found, dict) for found in containers):
        return "containers must be a list of at least one mapping"
    container = containers[0]
    resources = container.get("resources", {})
    if not isinstance(resources, dict) or not isinstance(resources.get("limits", {}), dict):
        return "resources must be a mapping, and limits in it, too"
    for name, found in (("volumes", spec.get("volumes", [])), ("volumeMounts", container.get("volumeMounts", []))):
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            return f"{name} must be a list of mappings"
    return ""


def _model_problem(spec: dict[str, Any]) -> str:
    """Why dagster-k8s rejects a spec, without the values that its own message would quote; "" if it does not."""
    _library()
    import kubernetes
    from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict

    kind = kubernetes.client.V1PodSpec
    first, *others = spec.get("containers", [{}])
    named = {**spec, "containers": [{"name": "named by dagster-k8s", **first}, *others]}
    try:
        k8s_model_from_dict(kind, k8s_snake_case_dict(kind, named))
    except Exception as error:
        found = _REFUSALS.match(str(error))
        return f"not a pod spec of Kubernetes ({found[0] if found else type(error).__name__})"
    return ""


def _one_line(error: Exception) -> str:
    reason = getattr(error, "reason", None)  # of kubernetes' ApiException, whose message includes all headers
    status = getattr(error, "status", None)
    return f"{status} {reason}" if status else mask_credentials(" ".join(str(error).split()))[:300]
