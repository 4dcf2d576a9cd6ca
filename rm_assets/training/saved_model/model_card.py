"""The model card: README.md of the saved model, generated from its job and metrics."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rm_assets.display_text import as_code, as_code_cell, printable
from rm_assets.training.jobs.lineage import lineage_field, lineage_of
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.model.architecture import is_encoder

_CARD = """---
{front_matter}
---

# {title}

A Bradley-Terry reward model: it gives a conversation a score. Of two replies to one prompt, it expects the
first to be preferred with probability sigmoid(score of the first - score of the second). A score alone means
nothing; only differences between replies to one prompt do.

| | |
|---|---|
| base model | {base} |{continued}{quantized}
| head at the start | {head} |
| data snapshot | {data_snapshot} |
| job key | {key} |

## Use

The chat template already writes the special tokens, hence `add_special_tokens=False` below. The tokenizer pads on
the right with {pad_token}, which is in no conversation. `golden_scores.json` holds {num_golden} conversations with
their text, ids and scores in float32: a server that reproduces them gives the scores reported here. In bfloat16, those
of transformers differ by up to {bfloat16_difference:.2g}; expect about twice that from other kernels.{notes}

transformers:

```python
from transformers import AutoModelForSequenceClassification
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForSequenceClassification.from_pretrained(directory{dtype})
conversation = [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]
text = tokenizer.apply_chat_template(conversation, tokenize=False)
score = model(**tokenizer([text], padding=True, return_tensors="pt", add_special_tokens=False)).logits
```

TRL, as the reward of a policy that is trained on conversations:

```python
from trl import GRPOTrainer

trainer = GRPOTrainer(model=policy, reward_funcs=directory, train_dataset=prompts)
```

TRL's `RewardTrainer(model=directory, ...)` trains it further, with the head that it has.

{servers}rm_assets serves it in float32, and answers OpenRLHF's requests at `http://localhost:5000/get_reward`. `score`
verifies that any of these servers gives the golden scores; with `--bfloat16`, it only reports the difference:

```bash
python -m rm_assets.training.serve DIRECTORY
python -m rm_assets.training.score DIRECTORY --url http://localhost:5000
```

With a file of pairs or conversations in place of `--url`, it scores the file.

## Metrics

{metrics}

Accuracy is the share of pairs whose chosen reply scores higher, where equal scores count one half, with its 95 %
interval; loss is the one that was trained on, with all its terms.

## Settings

{settings}
"""

_DECODER_SERVERS = """sentence-transformers, from messages:

```python
from sentence_transformers import CrossEncoder

[score] = CrossEncoder(directory{model_arguments}).predict([conversation])
```

vLLM. Name the `dtype`: float32 gives the golden scores, bfloat16 is faster; without it, vLLM runs weights in float32 as
float16. `use_activation=False` gives the score itself and not its sigmoid.{vllm_note}

```python
from vllm import LLM
from vllm import PoolingParams

llm = LLM(model=directory, runner="pooling", dtype="float32"{vllm_arguments})
ids = tokenizer(text, add_special_tokens=False).input_ids
[output] = llm.classify([{{"prompt_token_ids": ids}}], pooling_params=PoolingParams(use_activation=False))
score = output.outputs.probs[0]
```

The same over HTTP; the score is `data[0].probs[0]` of the answer:

```bash
vllm serve DIRECTORY --runner pooling --dtype float32{vllm_flags}
curl http://localhost:8000/classify -H 'Content-Type: application/json' -d '{{"use_activation": false,
  "messages": [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]}}'
```

Rendered text as `input` in place of `messages` needs `"add_special_tokens": false`, or some tokenizers write the first
special token twice.

OpenRLHF, in bfloat16 or float16 only. It cuts texts after `--data.max_len` tokens, by default 2048. Its trainers load
the directory by the same argument:

```bash
python -m openrlhf.cli.serve_rm --reward.model_name_or_path DIRECTORY
```

rewardbench 0.1.4, which needs a GPU and transformers 4.51, where Gemma 3 has no classifier yet. Each line of FILE.jsonl
has a conversation as `messages`, or a pair as `chosen` and `rejected`: lists of messages with the prompt, and without a
system message. The flags replace its defaults, float16 and 8 bits:

```bash
rewardbench --model DIRECTORY --dataset FILE.jsonl --load_json --torch_dtype float32 --not_quantized
```

"""

_VLLM_NOTE = " vLLM loads\nmodels of this type only with `convert` and `hf_overrides`:"
_VLLM_CAUSAL_MODELS = {"gemma3_text": "Gemma3ForCausalLM"}
"""Causal models that vLLM does not find by itself.

vLLM makes a classifier of the causal model whose name begins like the classifier's, such as Qwen3ForCausalLM for
Qwen3ForSequenceClassification. For Gemma3TextForSequenceClassification it finds none, and takes Gemma3TextModel, with
other weights.
"""

_HARMLESS = re.compile(r"(?!.*(www\.|://))[A-Za-z0-9](?:[A-Za-z0-9 .,:;/()%+-]|_(?=[A-Za-z0-9]))*", re.IGNORECASE)
"""Text without line breaks, links or characters that mean something in Markdown."""

_DTYPE = ', dtype="float32"'
_MODEL_ARGUMENTS = ', model_kwargs={"dtype": "float32"}'
_DTYPE_NOTE = (
    "\nThe body's weights are saved in bfloat16, the head's in float32: load them with `dtype` as below "
    "(`torch_dtype` before transformers 4.56), or scores are bfloat16's."
)
_QUANTIZED = (
    "\n| base while training | in 4 bits (NF4); the adapters were merged into its own weights, "
    "and all scores are those of the result |"
)
_NO_TEMPLATE = "\nThis tokenizer has no chat template: write the text as it was written for training."


def model_card(
    job: TrainingJob, metrics: Mapping[str, Any], tokenizer: Any, golden: Mapping[str, Any], model: Any
) -> str:
    """The card as Markdown with its YAML front matter.

    `golden` is the content of golden_scores.json, `model` the saved classifier; its weights are not read.
    """
    base, *snapshots = lineage(job)
    is_half = job.settings.saved_dtype == "bfloat16"
    return _CARD.format(
        front_matter=_front_matter(job),
        title=f"Reward model on {_shown(base, as_code)}",
        base=as_code_cell(base) + (" (a toy: random weights before training)" if job.toy else ""),
        continued=f"\n| continued from | {', then '.join(map(as_code_cell, snapshots))} |" if snapshots else "",
        quantized=_QUANTIZED if job.settings.load_in_4bit else "",
        head=_shown(str(metrics.get("head", "new"))),
        data_snapshot=as_code_cell(job.data_snapshot),
        key=as_code_cell(job.key),
        pad_token=as_code(str(tokenizer.pad_token)),
        num_golden=len(golden["conversations"]),
        bfloat16_difference=golden["largest_bfloat16_difference"],
        servers="" if is_encoder(model) else _decoder_servers(model, _MODEL_ARGUMENTS if is_half else ""),
        dtype=_DTYPE if is_half else "",
        notes=("" if tokenizer.chat_template else _NO_TEMPLATE) + (_DTYPE_NOTE if is_half else ""),
        metrics=_table(("metric", "value"), {name: value for name, value in metrics.items() if name != "head"}),
        settings=_table(("setting", "value"), job.settings.model_dump()),
    )


def _decoder_servers(model: Any, model_arguments: str) -> str:
    """How other programs load a decoder, with the arguments that vLLM needs for some of them."""
    write = functools.partial(_DECODER_SERVERS.format, model_arguments=model_arguments)
    causal = _VLLM_CAUSAL_MODELS.get(model.config.model_type)
    if causal is None:
        return write(vllm_note="", vllm_arguments="", vllm_flags="")
    overrides = json.dumps({"architectures": [causal]})
    return write(
        vllm_note=_VLLM_NOTE,
        vllm_arguments=f', convert="classify", hf_overrides={overrides}',
        vllm_flags=f" --convert classify --hf-overrides '{overrides}'",
    )


def lineage(job: TrainingJob) -> list[str]:
    """The first base model, and the snapshots that continued it; this training began with the last of them.

    A model has its name on the Hub or that of its directory, without the path, which a card must not reveal.
    """
    return job.lineage or lineage_of(job.model)


def _front_matter(job: TrainingJob) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-classification"]
    lines += ["tags: [reward-model, bradley-terry, preference]"]
    names = [printable(name) for name in lineage(job)]
    if "/" in names[0]:  # a name on the Hub; that of a directory has none
        lines.append(f"base_model: {json.dumps(names[0], ensure_ascii=False)}")
    return "\n".join([*lines, lineage_field([*names, printable(job.key[:16])])])


def _table(head: tuple[str, str], values: Mapping[str, Any]) -> str:
    shown = {name: f"{value:.6g}" if isinstance(value, float) else _shown(str(value)) for name, value in values.items()}
    return "\n".join(
        [
            f"| {head[0]} | {head[1]} |",
            "|---|---|",
            *(f"| {_shown(name)} | {value} |" for name, value in shown.items()),
        ]
    )


def _shown(text: str, as_code: Callable[[str], str] = as_code_cell) -> str:
    """A text that Markdown shows unchanged, in backquotes if needed."""
    return text if not text or _HARMLESS.fullmatch(text) else as_code(text)
