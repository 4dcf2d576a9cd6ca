import io
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from toy_pairs import VOCAB_SIZE
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_assets.data.formats.preferences import ParsingRules
from rm_assets.data.storage.fingerprint import file_sha256
from rm_assets.settings import SettingsError
from rm_assets.training.jobs.result import clear_output
from rm_assets.training.jobs.scoring_job import PAIRS
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.run import train_and_publish
from rm_assets.training.saved_model.pair_scoring import check_model, score_rows
from rm_assets.training.saved_model.stock_scoring import SavedModel, conversation_text, load_saved_model
from rm_assets.training.score import main, scored_lines


@pytest.fixture(scope="module")
def directory(tmp_path_factory, job_in):
    job = job_in(tmp_path_factory.mktemp("score"))
    clear_output(Path(job.output_directory))
    train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    return Path(job.output_directory) / "model"


@pytest.fixture
def copy(directory, tmp_path):
    return Path(shutil.copytree(directory, tmp_path / "copy"))


@pytest.fixture
def scored(directory, tmp_path, capsys):
    """A function that scores rows: the exit code, the lines of output, and what was said."""

    def score(rows, *options, model=directory, file=tmp_path / "in.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        code = main([str(model), str(file), *options])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return score


def stock_score(directory, *contents):
    """A score by nothing but transformers; contents in turns, the user's first."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item()


ROWS = [
    {"prompt": "w7 w8", "chosen": "w5", "rejected": "w6 w9"},
    {"messages": [{"role": "user", "content": "w7"}, {"role": "assistant", "content": "w5 w12"}]},
    {"prompt": "w9", "responses": [{"response": f"w{number}", "score": number} for number in (5, 6, 4)]},
    {"conversations": [{"from": "human", "value": "w8"}, {"from": "gpt", "value": "w6"}]},
]  # fmt: skip


def test_pairs_rankings_and_conversations_get_the_scores_that_transformers_gives(scored, directory):
    code, results, told = scored(ROWS)
    assert code == 0
    assert [(result["line"], result.get("pair")) for result in results] == [
        (1, 1),
        (2, None),
        (3, 1),
        (3, 2),
        (3, 3),
        (4, None),
    ]
    assert results[0]["chosen_score"] == pytest.approx(stock_score(directory, "w7 w8", "w5"), abs=1e-5)
    assert results[0]["rejected_score"] == pytest.approx(stock_score(directory, "w7 w8", "w6 w9"), abs=1e-5)
    assert results[0]["margin"] == results[0]["chosen_score"] - results[0]["rejected_score"]
    assert results[1]["score"] == pytest.approx(stock_score(directory, "w7", "w5 w12"), abs=1e-5)
    assert results[5]["score"] == pytest.approx(stock_score(directory, "w8", "w6"), abs=1e-5)
    assert "golden scores verified" in told
    assert "4 pairs, accuracy" in told
    assert "2 conversations; 0 without a score" in told


@pytest.mark.parametrize("options", [("--batch-size", "1"), ("--batch-size", "5", "--padding", "left")])
def test_batch_size_and_padding_change_no_score(scored, options):
    _, expected, _ = scored(ROWS)
    _, found, _ = scored(ROWS, *options)
    for one, other in zip(expected, found, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_line_without_a_score_says_why_and_stops_no_other(scored):
    too_long = {"prompt": "w7 " * 80, "chosen": "w5", "rejected": "w6"}
    code, results, told = scored([b"{broken", {"x": 1}, {"messages": [1]}, too_long, ROWS[0]])
    assert code == 0
    assert [result.get("problem", "").split(":")[0] for result in results] == [
        "not_json", "unknown_format", "wrong_type", "it has 83 tokens, and the model 64 positions", "",
    ]  # fmt: skip
    assert "1 pairs, accuracy" in told
    assert "4 without a score" in told


def test_a_byte_that_is_no_text_is_a_problem_of_its_line_alone(scored):
    whole = json.dumps(ROWS[0]).encode()
    advice = "of the line is not UTF-8: save the file as UTF-8"
    code, results, told = scored([ROWS[0], b"\xff", whole.replace(b"w7", b"w\xc3"), b"\xff\xfe{", ROWS[0]])
    assert code == 0
    assert [result["line"] for result in results] == [1, 2, 3, 4, 5]
    assert [result.get("problem") for result in results] == [
        None, f"not_utf8: byte 1 {advice}", f"not_utf8: byte {whole.index(b'w7') + 2} {advice}",
        f"not_utf8: byte 1 {advice}", None,
    ]  # fmt: skip
    assert results[0]["margin"] == results[4]["margin"]
    assert "2 pairs" in told
    assert "3 without a score" in told


def test_only_a_line_feed_ends_a_line(scored):
    plain = json.dumps(ROWS[0]).encode()
    parted = plain.replace(b'", "', b'",\r"')  # white space of JSON between two fields
    separated = json.dumps({"prompt": "w7\u2028w8", "chosen": "w5", "rejected": "w6 w9"}, ensure_ascii=False).encode()
    assert b"\r" in parted
    code, results, _ = scored([b"\xef\xbb\xbf" + plain, parted, plain + b"\r", b" \t\r", separated])
    assert code == 0
    assert [result["line"] for result in results] == [1, 2, 3, 5]
    assert len({result["margin"] for result in results}) == 1  # this tokenizer parts words at U+2028, too


def test_standard_input_is_cut_into_lines_alike(scored, monkeypatch):
    class Standard:
        buffer = io.BufferedReader(io.BytesIO(b"\xff\n" + json.dumps(ROWS[0]).encode()))

    monkeypatch.setattr("sys.stdin", Standard)
    code, results, _ = scored([], file="-")
    assert code == 0
    assert [(result["line"], "margin" in result) for result in results] == [(1, False), (2, True)]


def test_a_line_that_annotations_would_not_take_for_its_length_gets_no_score(scored, monkeypatch):
    monkeypatch.setenv("RM_MAX_LINE_BYTES", "1000")
    _, results, _ = scored([{"prompt": "w7 " * 400, "chosen": "w5", "rejected": "w6"}, ROWS[0]])
    assert results[0]["problem"].startswith("line_too_long: ")
    assert "margin" in results[1]


def test_no_control_character_of_a_name_reaches_the_terminal(directory, tmp_path, capsys):
    assert main([str(directory), str(tmp_path / "a\x1b]0;title\x07\u202e.jsonl")]) == 1
    error = capsys.readouterr().err
    assert r"a\x1b]0;title\x07\u202e.jsonl" in error.replace("\\\\", "\\")
    assert not set("\x1b\x07\u202e") & set(error)


class PanicException(BaseException):  # as a tokenizer written in Rust raises it
    pass


@pytest.mark.parametrize("error", [ValueError, PanicException])
def test_a_conversation_that_the_tokenizer_fails_on_is_a_problem_of_its_own(directory, error):
    saved = load_saved_model(directory)

    class FailsOnW11:
        def __getattr__(self, name):
            return getattr(saved.tokenizer, name)

        def __call__(self, text, **options):
            if "w11" in text:
                raise error("no")
            return saved.tokenizer(text, **options)

    failing = SavedModel(saved.model, FailsOnW11())
    lines = [(1, json.dumps(ROWS[0])), (2, json.dumps(ROWS[0]).replace("w5", "w11"))]
    results = scored_lines(lines, failing, ParsingRules(), 4, "right")
    assert "margin" in results[0]
    assert results[1] == {"line": 2, "pair": 1, "problem": f"the tokenizer fails on it ({error.__name__})"}
    row = dict.fromkeys(PAIRS.names, "") | {
        "line": 1,
        "prompt": [message("user", "w7")],
        "chosen": [message("assistant", "w5")],
    }
    pairs = [row | {"rejected": [message("assistant", word)]} for word in ("w6", "w11")]
    table = score_rows(failing, pairs, 64, 4)
    assert table["problem"].to_pylist() == ["", f"the tokenizer fails on it ({error.__name__})"]


def test_a_conversation_with_a_token_that_has_no_embedding_is_a_problem_of_its_own(directory):
    saved = load_saved_model(directory)
    saved.tokenizer.add_tokens(["added"])
    problem = f"its token 'added' has id {VOCAB_SIZE}, but the model has only {VOCAB_SIZE} embeddings"
    lines = [(1, json.dumps(ROWS[0])), (2, json.dumps(ROWS[0]).replace("w5", "added"))]
    results = scored_lines(lines, saved, ParsingRules(), 4, "right")
    assert "margin" in results[0]
    assert results[1] == {"line": 2, "pair": 1, "problem": problem}
    row = dict.fromkeys(PAIRS.names, "") | {"line": 1, "prompt": [message("user", "w7")]}
    pairs = [
        row | {"chosen": [message("assistant", word)], "rejected": [message("assistant", "w6")]}
        for word in ("w5", "added")
    ]
    assert score_rows(saved, pairs, 64, 4)["problem"].to_pylist() == ["", problem]


def message(role, content):
    return {"role": role, "content": content}


def test_columns_and_labels_are_read_as_the_annotations_are(scored, monkeypatch):
    monkeypatch.setenv("RM_COLUMNS", '{"prompt": "query", "chosen": "winner", "rejected": "loser"}')
    _, results, _ = scored([{"query": "w7 w8", "winner": "w5", "loser": "w6 w9"}])
    assert "margin" in results[0]


def compared(**verdict):
    return {"prompt": "q", "response_1": "Gladly.", "response_2": "No.", **verdict}


@pytest.mark.parametrize(
    ("verdicts", "problems"),
    [
        ([{"label": 1}, {"label": 2}], ["", ""]),
        ([{"label": 1}, {"label": 0}], ["ambiguous_label", "ambiguous_label"]),  # 1 may be the second one
        ([{"overall_preference": -2}, {"overall_preference": 1}], ["", ""]),
        ([{"overall_preference": 2}, {"overall_preference": 7}], ["ambiguous_label", "ambiguous_label"]),
    ],
)
def test_a_label_is_read_as_the_other_lines_allow(scored, verdicts, problems):
    _, results, _ = scored([compared(**verdict) for verdict in verdicts])
    assert [result.get("problem", "").partition(":")[0] for result in results] == problems


def test_what_a_conversation_holds_besides_text_is_a_problem(scored):
    asked = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Gladly."}]}
    rows = [
        asked | {"images": ["cup.png"]},
        asked | {"functions": [{"name": "f"}]},
        asked | {"rejected_response": "No."},
    ]
    _, results, _ = scored(rows)
    assert [result.get("problem", "").partition(":")[0] for result in results] == ["not_text", "unsupported_field", ""]
    assert "margin" in results[2]


def test_the_output_goes_into_a_file_where_one_is_named(scored, tmp_path):
    code, printed, _ = scored(ROWS, "--output", str(tmp_path / "out.jsonl"))
    assert (code, printed) == (0, [])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("way", ["same", "symbolic link", "hard link", "standard input"])
def test_scores_never_replace_the_file_that_they_are_of(scored, tmp_path, monkeypatch, way):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.touch()
    if way == "symbolic link":
        target.symlink_to(source)
    elif way == "hard link":
        target.hardlink_to(source)
    else:
        target = source
    with source.open("rb") as stream:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
        code, printed, told = scored(ROWS, "--output", str(target), file="-" if way == "standard input" else source)
    assert (code, printed) == (1, [])
    assert "the file whose lines are to be scored: name another one" in told
    assert [json.loads(line) for line in source.read_bytes().splitlines()] == ROWS


def test_the_output_may_be_a_device(scored):
    code, printed, told = scored(ROWS, "--output", "/dev/null")
    assert (code, printed) == (0, [])
    assert "4 pairs" in told


@pytest.mark.parametrize(
    "option", [("--batch-size", "0"), ("--batch-size", "-1"), ("--tolerance", "nan"), ("--tolerance", "-1")]
)
def test_a_number_that_would_score_nothing_is_a_wrong_argument(scored, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        scored(ROWS, *option, "--bfloat16")
    assert f"argument {option[0]}: invalid" in capsys.readouterr().err


def changed_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_a_model_without_some_of_its_weights_scores_nothing_in_any_precision(scored, copy):
    changed_weights(copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    code, results, told = scored(ROWS, "--bfloat16", model=copy)
    assert (code, results) == (1, [])
    assert "it lacks the weights ['model.layers.1.mlp.up_proj.weight']: give a complete checkpoint" in told


def test_a_model_with_weights_that_are_no_numbers_scores_nothing(scored, copy):
    changed_weights(copy, lambda weights: weights["model.embed_tokens.weight"][30].fill_(float("nan")))
    code, results, told = scored(ROWS, "--bfloat16", model=copy)
    assert (code, results) == (1, [])
    assert "its weights 'model.embed_tokens.weight' are not all finite numbers: download the files again" in told


def test_scores_that_are_no_finite_numbers_are_problems_of_their_lines(copy):
    changed_weights(copy, lambda weights: weights["score.weight"].mul_(0).add_(3e38))
    saved = load_saved_model(copy)
    results = scored_lines([(7, json.dumps(ROWS[0])), (8, json.dumps(ROWS[1]))], saved, ParsingRules(), 4, "right")
    told = [result.pop("problem") for result in results]
    assert results == [{"line": 7, "pair": 1}, {"line": 8}]
    assert all(text.startswith("the model gives scores that are not finite: ") for text in told)
    row = dict.fromkeys(PAIRS.names, "") | {"line": 1, "prompt": [message("user", "w7")]}
    row |= {"chosen": [message("assistant", "w5")], "rejected": [message("assistant", "w6")]}
    [pair] = score_rows(saved, [row], 64, 4).to_pylist()
    assert (pair["chosen_score"], pair["rejected_score"]) == (None, None)
    assert pair["problem"].startswith("the model gives scores that are not finite: ")


def test_bfloat16_is_scored_with_its_difference_reported(scored):
    code, results, told = scored(ROWS[:1], "--bfloat16")
    _, exact, _ = scored(ROWS[:1])
    assert code == 0
    assert "in bfloat16" in told
    assert results[0]["chosen_score"] != exact[0]["chosen_score"]
    assert results[0]["chosen_score"] == pytest.approx(exact[0]["chosen_score"], abs=0.1)


def test_a_template_that_costs_without_bounds_is_one_error(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = "{{ messages[0].content * 4000000000 }}"
    with pytest.raises(SettingsError, match="exceeds a bound on a conversation of 1 messages: more work than writing"):
        conversation_text(tokenizer, [{"role": "user", "content": "w7"}])


def test_a_model_whose_template_was_changed_scores_nothing(scored, directory, tmp_path):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %} <end>")
    code, results, told = scored(ROWS, model=copy)
    assert (code, results) == (1, [])
    assert "does not reproduce its golden scores: chat_template_sha256" in told


def test_a_missing_file_or_model_is_one_clear_error(directory, tmp_path, capsys):
    assert main([str(directory), str(tmp_path / "none.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path / "none.jsonl")]) == 1
    assert "no reward model can be loaded" in capsys.readouterr().err
    assert main([str(directory.parent), str(tmp_path / "none.jsonl")]) == 1  # as a snapshot, which holds the model
    assert (
        f"(no config.json); give a directory that save_pretrained of transformers wrote, such as {str(directory)!r}"
        in (capsys.readouterr().err)
    )


def test_a_job_scores_with_no_model_but_the_one_that_was_written(directory, tmp_path):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    hashes = {path.name: file_sha256(path) for path in copy.iterdir()}
    check_model(copy, hashes)
    for name in ("tokenizer.json", "config.json"):
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        with pytest.raises(TrainingError, match=rf"{name}' is damaged \(its sha256 is"):
            check_model(copy, hashes)
        (copy / name).unlink()
        with pytest.raises(TrainingError, match=rf"{name}' is missing"):
            check_model(copy, hashes)
        shutil.copy(directory / name, copy)
