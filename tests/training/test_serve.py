"""The server of a saved model: both endpoints over its app, and the command as a process that a signal stops."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from rm_assets.training.jobs.result import clear_output
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.run import train_and_publish
from rm_assets.training.saved_model.golden_scores import read_golden_scores
from rm_assets.training.saved_model.stock_scoring import load_saved_model
from rm_assets.training.score import main as score
from rm_assets.training.serve import build_app, main

USER, REPLY = {"role": "user", "content": "w7"}, {"role": "assistant", "content": "w5"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, job_in):
    job = job_in(tmp_path_factory.mktemp("serve"))
    clear_output(Path(job.output_directory))
    train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    return Path(job.output_directory) / "model"


@pytest.fixture(scope="module")
def client(directory):
    return TestClient(build_app(load_saved_model(directory), 3, 25, 20_000))


@pytest.fixture(scope="module")
def golden(directory):
    return read_golden_scores(directory)["conversations"]


def scores_of(golden):
    return pytest.approx([item["score"] for item in golden], abs=1e-5)


# --- the endpoints -------------------------------------------------------------------------------------------


def test_openrlhf_sends_texts_and_gets_the_golden_scores(client, golden):
    request = {"query": [item["text"] for item in golden], "prompts": ["w7"] * len(golden), "labels": [""]}
    answer = client.post("/get_reward", json=request)
    assert answer.status_code == 200
    assert answer.json()["rewards"] == answer.json()["scores"] == scores_of(golden)
    assert answer.json()["extra_logs"] == {}


def test_messages_get_the_golden_scores_with_tools_or_without(client, golden):
    conversations = [item["messages"] if number % 2 else {"messages": item["messages"], "tools": []}
                     for number, item in enumerate(golden)]  # fmt: skip
    answer = client.post("/rewards", json={"conversations": conversations})
    assert answer.json()["rewards"] == scores_of(golden)
    other_form = [{"from": "human", "value": "w7"}, {"from": "gpt", "value": "w5"}]
    both = client.post("/rewards", json={"conversations": [[USER, REPLY], other_form]}).json()["rewards"]
    assert both[0] == pytest.approx(both[1], abs=1e-6)


def test_no_sequences_have_no_rewards(client):
    assert client.post("/get_reward", json={"query": []}).json()["rewards"] == []


REFUSED = {
    "no JSON": ("/get_reward", b"{", 400, "the request is not JSON"),
    "not UTF-8": ("/get_reward", b'{"query": ["\xff"]}', 400, "the request is not JSON"),
    "deep": ("/rewards", b'{"conversations": [' + b"[" * 9000, 400, "the request is not JSON"),
    "a list": ("/get_reward", [], 422, 'the request is not {"query": [text, ...]}'),
    "no query": ("/get_reward", {"queries": ["w7"]}, 422, "missing required field `query`"),
    "one text": ("/get_reward", {"query": "w7"}, 422, "Expected `array`, got `str` - at `$.query`"),
    "a number": ("/get_reward", {"query": ["w7", 5]}, 422, "Expected `str`, got `int` - at `$.query[1]`"),
    "an empty text": ("/get_reward", {"query": ["w7", ""]}, 422, "query 1 cannot be scored: it has 0 tokens"),
    "a long text": ("/get_reward", {"query": ["w7 " * 65]}, 422, "query 0 cannot be scored: it has 65 tokens, and the"),
    "no messages": ("/rewards", {"conversations": [{}]}, 422, "missing required field `messages`"),
    "no role": ("/rewards", {"conversations": [[USER], [{"content": "w7"}]]}, 422, "conversation 1 cannot be scored"),
    "texts": ("/rewards", {"conversations": [["w7"]]}, 422, "conversation 0 cannot be scored: wrong_type"),
    "tools": ("/rewards", {"conversations": [{"messages": [USER], "tools": 5}]}, 422, "`tools` is neither a list nor"),
    "many": ("/get_reward", {"query": ["w7"] * 26}, 413, "the request has 26 sequences, more than 25"),
    "large": ("/get_reward", b" " * 20_001, 413, "the request has more than 20000 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_a_clear_error_and_no_score(client, name):
    path, body, status, reason = REFUSED[name]
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert reason in answer.json()["error"]


def test_scores_that_are_not_finite_are_an_error(directory, tmp_path):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    saved = load_saved_model(copy)
    saved.model.score.weight.data.fill_(3e38)
    answer = TestClient(build_app(saved, 3, 25, 20_000)).post("/get_reward", json={"query": ["w7 w5"]})
    assert answer.status_code == 500
    assert "the model gives sequence 0 a score that is not finite" in answer.json()["error"]


# --- the command ---------------------------------------------------------------------------------------------


@contextmanager
def server(directory) -> Iterator[str]:
    """The address of the command's server, which SIGTERM stops."""
    command = [sys.executable, "-m", "rm_assets.training.serve", str(directory), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            found = next(address for line in lines if (address := re.search(r"on (http://127\.0\.0\.1:\d+)$", line)))
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
    assert process.returncode in (0, -signal.SIGTERM)


def test_the_command_serves_on_the_loopback_and_is_verified_by_its_url(directory, capsys):
    with server(directory) as address:
        code, told = score([str(directory), "--url", address + "/"]), capsys.readouterr().err
        assert code == 0, told
        assert re.search(rf"golden scores verified by /rewards of '{address}/', largest difference [0-9.e-]+$", told)


def test_a_model_without_its_golden_scores_is_not_served(directory, tmp_path, capsys):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert main([str(copy), "--port", "0"]) == 1
    assert "error: " in (told := capsys.readouterr().err)
    assert "does not reproduce its golden scores" in told


def test_an_address_that_is_taken_is_a_clear_error(directory, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        port = other.server_address[1]
        assert main([str(directory), "--port", str(port)]) == 1
    assert f"error: cannot listen on '127.0.0.1', port {port}: " in capsys.readouterr().err
    assert main([str(directory), "--port", "0", "--host", "192.0.2.1"]) == 1  # of no machine (RFC 5737)
    assert "error: cannot listen on '192.0.2.1', port 0: " in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--port", "70000"), ("--port", "-1"), ("--batch-size", "0"), ("--port", "x")])
def test_a_wrong_number_is_refused_before_the_model_is_loaded(directory, capsys, wrong):
    with pytest.raises(SystemExit, match="2"):
        main([str(directory), *wrong])
    assert f"invalid {'_port' if 'port' in wrong[0] else 'positive'} value" in capsys.readouterr().err


# --- verifying a server --------------------------------------------------------------------------------------


@contextmanager
def answering(answer):
    """A server that answers `answer(path, request)`: a status and JSON content."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = answer(self.path, request)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{found.server_address[1]}"
        finally:
            found.shutdown()


def as_vllm(golden, change=0.0):
    scores = {json.dumps(item["messages"]): item["score"] for item in golden}

    def answer(path, request):
        if path != "/classify":
            return 404, {}
        assert request["use_activation"] is False
        return 200, {"data": [{"index": 0, "probs": [scores[json.dumps(request["messages"])] + change]}], "model": "x"}

    return answer


def test_a_server_like_vllm_is_verified_and_its_difference_stated(directory, golden, capsys):
    with answering(as_vllm(golden)) as url:
        assert score([str(directory), "--url", url]) == 0
        assert f"verified by /classify of '{url}', largest difference 0" in capsys.readouterr().err
    with answering(as_vllm(golden, 0.25)) as url:
        assert score([str(directory), "--url", url]) == 1
        assert "the largest difference is 0.25, more than" in capsys.readouterr().err
        assert score([str(directory), "--url", url, "--bfloat16"]) == 0
        assert "largest difference 0.25 in bfloat16" in capsys.readouterr().err


def test_a_server_like_openrlhfs_is_verified(directory, golden, capsys):
    texts = {item["text"]: item["score"] for item in golden}

    def answer(path, request):
        return (200, {"rewards": [texts[text] for text in request["query"]]}) if path == "/get_reward" else (404, {})

    with answering(answer) as url:
        assert score([str(directory), "--url", url]) == 0
    assert "verified by /get_reward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (404, {}, "has none of the endpoints /rewards, /classify and /get_reward: check the URL"),
        (422, {"error": "no template"}, 'refuses the golden conversations (422): {"error": "no template"}'),
        (200, {"rewards": [1.0]}, "gave 1 scores for 20 conversations"),
        (200, {"rewards": None}, "gives no scores: Expected `array`, got `null`"),
        (200, [], "gives no scores: Expected `object`"),
    ],
)
def test_a_server_that_gives_no_scores_is_a_clear_error(directory, capsys, status, content, reason):
    with answering(lambda *_: (status, content)) as url:
        assert score([str(directory), "--url", url]) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("url", ["file:///etc/passwd", "nonsense", "http://user:secret@127.0.0.1:1", "ftp://x"])
def test_an_address_without_a_server_is_a_clear_error(directory, capsys, url):
    assert score([str(directory), "--url", url]) == 1
    assert "gives no scores: " in (told := capsys.readouterr().err)
    assert "secret" not in told


def test_either_a_file_or_a_server_is_given(directory, capsys):
    for arguments in ([], ["pairs.jsonl", "--url", "http://127.0.0.1:1"]):
        with pytest.raises(SystemExit, match="2"):
            score([str(directory), *arguments])
        assert "give either a FILE or --url URL" in capsys.readouterr().err
