"""Jobs as pods of a Kubernetes cluster, through dagster-k8s' `PipesK8sClient`.

A pod carries its job's name as a label, by which it is found, also by a later run: one that was killed leaves its pod,
which the next run removes before it starts another. A removed pod gets SIGTERM, and the job saves and leaves.
Which pod waits for which GPU is the cluster's to decide: no lock of ours is held for that.
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
from rm_assets.defs.launchers.base import Ending
from rm_assets.defs.runs.cancellation import ending_job
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
_MAX_SPEC_BYTES = 2**20
_MAX_SPEC_VALUES = 100_000
_QUOTED = re.compile(r"""['"].*['"]""", re.DOTALL)
"""From the first quotation mark of a message to its last: what it quotes of the file that it is about."""
_REFUSALS = re.compile(
    r"Attribute \w+(\[\d+\])? of type \w+ must be a dict|Unexpected keys in model class \w+"
    r"|Invalid value for `\w+`, must not be `None`"
)
"""The parts of dagster-k8s' messages that name a place and show no value."""


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
        if problem := _misplaced(spec):
            raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {self.settings.pod_spec!r}: {problem}")
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
        except Exception as error:  # also of YAML and base64: whatever a damaged kubeconfig leads to
            is_own = isinstance(error, kubernetes.config.ConfigException)
            problem = _one_line(error) if is_own else f"the kubeconfig cannot be read: {_problem_of_yaml(error)}"
            raise SettingsError(f"launcher (or RM_LAUNCHER) is 'kubernetes': {problem}") from None
        return kubernetes.client.CoreV1Api()

    def _pods(self, api: Any, selector: str) -> list[Any]:
        with _answering():
            return list(api.list_namespaced_pod(self._namespace, label_selector=selector).items)

    @ending_job()
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
    """The pod spec of a file. It may hold secrets, so errors say where it is wrong, and never what it holds."""
    if path is None:
        return {}
    try:
        spec, problem = _spec_or_problem(Path(path))
    except OSError as error:
        spec, problem = {}, _one_line(error)
    except Exception as error:  # a constructor of YAML raises what it likes, deep nesting a RecursionError
        spec, problem = {}, _problem_of_yaml(error)
    if problem:
        raise SettingsError(f"pod_spec (or RM_POD_SPEC) is {path!r}: {problem}")
    return spec


def _spec_or_problem(path: Path) -> tuple[dict[str, Any], str | None]:
    with path.open("rb") as stream:
        content = stream.read(_MAX_SPEC_BYTES + 1)
    if len(content) > _MAX_SPEC_BYTES:
        return {}, f"larger than {_MAX_SPEC_BYTES} bytes"
    root = yaml.compose(content, Loader=yaml.SafeLoader)
    if root is not None and _has_too_many_values(root):
        return {}, f"more than {_MAX_SPEC_VALUES} values, once its aliases are written out"
    spec = yaml.safe_load(content)
    return spec, _problem(spec)


def _problem_of_yaml(error: Exception) -> str:
    """What is wrong with YAML, and in which line, with nothing of its text."""
    problem = getattr(error, "problem", None)
    told = f"not valid YAML ({_QUOTED.sub('…', problem) if isinstance(problem, str) else type(error).__name__})"
    mark = getattr(error, "problem_mark", None)
    return f"{told}, line {mark.line + 1}" if mark else told


def _problem(spec: Any) -> str | None:
    """Why this is no pod spec to add to, if it is none; what else is wrong with it, the cluster tells."""
    if not isinstance(spec, dict):
        return "no pod spec, which is a mapping with containers"
    if "spec" in spec or "kind" in spec:
        return "a whole manifest: give what stands under spec:"
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
    return None


def _has_too_many_values(root: Any) -> bool:
    """Whether a composed YAML document is too large with each alias written out; an alias of what it is in never ends.

    Merge keys are written out when Python's values are made, the others when the spec is sent to the cluster.
    """
    waiting, num_values = [root], 0
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        num_values += len(parts)
        if num_values > _MAX_SPEC_VALUES:
            return True
        waiting += parts
    return False


def _misplaced(spec: dict[str, Any]) -> str | None:
    """What dagster-k8s refuses of a spec; its own message would show the value."""
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
    return None


def _one_line(error: Exception) -> str:
    reason = getattr(error, "reason", None)  # of kubernetes' ApiException, whose text has all headers
    status = getattr(error, "status", None)
    return f"{status} {reason}" if status else mask_credentials(" ".join(str(error).split()))[:300]
