"""What the graph never does: open a pickle, call another machine, or tell a secret."""

import ast
import contextlib
import gc
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from audited import COMMAND, SECRET, AuditedRun, audited_run

from rm_assets.definitions import definitions
from rm_assets.settings import setting_fields
from rm_assets.training.processes.children import free_port

ROOT = Path(__file__).parents[2]
ROOMS = (ROOT / "rm_assets", ROOT / "benchmarks")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "torch.load", "torch.save", "pd.read_pickle", "torch.distributed.checkpoint", "yaml.load", "yaml.unsafe_load",
    "all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list", "trust_remote_code=True",
    "allow_pickle=True", "use_safetensors=False",
}  # fmt: skip
FROM_FILES = ("from_pretrained", "from_config")
OWN_CHILDREN = ("/multiprocessing/", "/concurrent/futures/")
OFFLINE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def forbidden_in(source: str) -> Iterator[str]:
    """Whatever in a file's code could open a pickle, or run code of a model's directory."""
    gc.disable()  # a finalizer of another test's objects within ast.parse can make it raise SystemError
    try:
        tree = ast.parse(source)
    finally:
        gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            names += [f"{names[0]}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name.split(".")[0] in UNPICKLERS or name in FORBIDDEN_CALLS)
        elif isinstance(node, ast.Attribute | ast.Name):
            name = ast.unparse(node)
            yield from (call for call in FORBIDDEN_CALLS if name == call or name.endswith(f".{call}"))
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield from FORBIDDEN_CALLS & {f"{node.arg}={ast.unparse(node.value)}"}
        elif isinstance(node, ast.Call) and may_ask_for_code(node):
            yield f"{ast.unparse(node.func)} without trust_remote_code=False"


def may_ask_for_code(call: ast.Call) -> bool:
    """Whether a call loads files of a model without saying that their code is not run: transformers may ask then."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in FROM_FILES:
        return False
    said = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "trust_remote_code"]
    return said != ["False"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('a.pt')",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed import checkpoint",
        "np.load(path, allow_pickle=True)",
        "import torch.distributed as d\nd.all_gather_object(a, b)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(name)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=None)",
        "AutoModel.from_config(configuration, **options)",
        "peft.PeftModel.from_pretrained(model, directory)",
    ],
)
def test_the_scan_finds_what_opens_a_pickle(source: str) -> None:
    assert list(forbidden_in(source)) != []


@pytest.mark.parametrize("path", sorted(path for room in ROOMS for path in room.rglob("*.py")), ids=str)
def test_no_module_can_open_a_pickle(path: Path) -> None:
    assert list(forbidden_in(path.read_text())) == []


def test_code_of_a_tokenizer_is_not_run_where_the_terminal_says_yes(tmp_path: Path) -> None:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    configuration = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "chat_template": "{{ messages[0].content }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(configuration))
    (directory / "vocab.json").write_text('{"a": 0}')
    (directory / "own.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Own: pass\n")
    run = subprocess.run(
        [*COMMAND, "asset", "materialize", "-m", "rm_assets.definitions", "--select", "raw_preferences"],
        env={**os.environ, "RM_TOKENIZER": str(directory), "DAGSTER_HOME": str(tmp_path), "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        input="y\n" * 100,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert not (tmp_path / "canary").exists()
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"error: raw_preferences: tokenizer (or RM_TOKENIZER) is {str(directory)!r}: ")
    assert last.endswith("code of its own, which is never run: give a tokenizer that transformers knows")


def test_no_asset_hands_a_value_to_dagsters_pickling_store() -> None:
    """An asset that returns a value, or takes one, goes through an IO manager, which refuses both."""
    for asset in definitions().assets or []:
        assert isinstance(asset, dg.AssetsDefinition)
        assert list(asset.node_def.ins) == [] or all(
            definition.dagster_type.is_nothing for definition in asset.node_def.input_dict.values()
        ), asset.key


def test_a_value_between_assets_is_refused_and_never_pickled(tmp_path: Path) -> None:
    @dg.asset
    def hands_on_a_value() -> list[int]:
        return [1]

    @dg.asset
    def takes_a_value(hands_on_a_value: list[int]) -> None:
        pass

    resources = definitions().resources
    assert resources
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = dg.materialize([hands_on_a_value], resources=resources, instance=instance, raise_on_error=False)
        assert not run.success
        [failure] = run.get_step_failure_events()
        assert "an asset of rm_assets hands on no value: write files" in failure.step_failure_data.error_display_string
        instance.report_runless_asset_event(dg.AssetMaterialization("hands_on_a_value"))
        run = dg.materialize(
            [hands_on_a_value, takes_a_value],
            selection=[takes_a_value],
            resources=resources,
            instance=instance,
            raise_on_error=False,
        )
        [failure] = run.get_step_failure_events()
        assert "an asset of rm_assets hands on no value" in failure.step_failure_data.error_display_string


def test_the_audit_is_in_every_process_of_a_run(audited: AuditedRun) -> None:
    """Dagster's, the training's outer one, torchrun and two workers, and those that score pairs."""
    started = [note.what for note in audited.notes if note.event == "process"]
    assert any("asset materialize" in what for what in started)
    assert sum("rm_assets.training.torchrun" in what for what in started) == 1
    assert sum(" -m rm_assets.training " in what or " -m rm_assets.training\0" in what for what in started) >= 3
    assert any("rm_assets_scoring_" in what for what in started)


def test_a_whole_run_unpickles_nothing_but_messages_between_its_own_processes(audited: AuditedRun) -> None:
    assert audited.run.returncode == 0, audited.run.stderr
    opened = [note.what for note in audited.notes if note.event == "open"]
    assert opened == []
    assert [path for path in (audited.directory / "storage").rglob("*") if path.is_file() and path.suffix == ""] == []
    unpickled = [note for note in audited.notes if note.event == "pickle.find_class"]
    assert [
        (note.what, note.frames[-6:])
        for note in unpickled
        if not any(part in frame for frame in note.frames for part in OWN_CHILDREN)
    ] == []


def test_a_whole_run_connects_to_this_machine_alone(audited: AuditedRun) -> None:
    called = {note.what for note in audited.notes if note.event.startswith("socket.")}
    assert {what for what in called if not is_here(what)} == set()


def is_here(address: str) -> bool:
    """Whether an address, as Python's socket module takes it, is of this machine: a file, or the loopback interface."""
    found = ast.literal_eval(address)
    host = found[0] if isinstance(found, tuple) else found
    if host in (None, "localhost", "localhost.localdomain") or str(host).startswith(("/", "\0")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def test_addresses_elsewhere_are_told_from_those_here() -> None:
    assert is_here("('127.0.0.1', 80)") and is_here("'/run/socket'") and is_here("('::1', 80, 0, 0)")
    assert not is_here("('8.8.8.8', 53)") and not is_here("'huggingface.co'") and not is_here("('10.0.0.1', 1)")


@pytest.mark.parametrize("event", ["pickle.find_class", "socket.connect", "open"])
def test_the_audit_sees_what_it_is_for(tmp_path: Path, event: str) -> None:
    program = """if True:
        import collections, pathlib, pickle, socket
        pickle.loads(pickle.dumps(collections.OrderedDict(a=1)))
        pathlib.Path("weights.pt").write_bytes(b"")
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
    """
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "audit"), "AUDIT_OF_TEST": str(tmp_path / "audit")}
    subprocess.run([sys.executable, "-c", program], env=os.environ | environment, cwd=tmp_path, check=True)
    assert f'["{event}"' in (tmp_path / "audit").read_text()


def test_secrets_of_the_environment_are_written_and_told_nowhere(audited: AuditedRun) -> None:
    assert SECRET in audited.environment["AWS_SECRET_ACCESS_KEY"]
    assert SECRET not in audited.run.stdout + audited.run.stderr
    files = [path for path in audited.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files) and any(path.name == "manifest.json" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_no_setting_is_a_secret() -> None:
    """What needs one takes it from the variables of its own library (AWS_*, HF_TOKEN, WANDB_API_KEY), never from us."""
    words = {"secret", "password", "credential", "credentials", "key", "token"}
    assert [name for name, _ in setting_fields() if words & set(name.split("_"))] == []


def has_namespaces() -> bool:
    """Whether this user may make a network of its own, without any interface but loopback."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*OFFLINE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.soak
@pytest.mark.skipif(not has_namespaces(), reason="needs unshare, ip and user namespaces")
def test_the_whole_graph_runs_where_there_is_no_network(tmp_path: Path) -> None:
    found = audited_run(tmp_path, OFFLINE)
    assert found.run.returncode == 0, found.run.stderr


def listening(group: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal notation, at which the processes of a group take connections."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(process.name)) == group:
                inodes |= {str(path.readlink()) for path in (process / "fd").iterdir() if path.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in inodes:  # TCP_LISTEN
                found.add(address)
    return found


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="finds sockets by /proc")
def test_the_ui_listens_at_loopback_alone(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*COMMAND, "dev", "-m", "rm_assets.definitions", "-p", str(port)],
            env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := listening(server.pid)) or not any(address.endswith(f":{port:04X}") for address in found):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        assert {address.split(":")[0] for address in found} == {"0100007F"}  # 127.0.0.1
    finally:
        os.killpg(server.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
