"""The model card of a distilled student: what was done and what came out, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from opdf.data import Prepared, Task
from opdf.files import replacing
from opdf.job.config import DistillConfig
from opdf.job.options import yaml_of

PIPELINES = {
    "classification": "text-classification",
    "multi-label": "text-classification",
    "regression": "text-classification",
    "token-classification": "token-classification",
    "causal-lm": "text-generation",
    "image-classification": "image-classification",
    "similarity": "sentence-similarity",
}
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ kind }} of {{ inference }} parameters, distilled from {{ teacher }}
{%- if shapes %}, over-parameterized while it trained ([OPDF](https://arxiv.org/abs/2411.06448)){% endif %}.
It loads with plain transformers:

```python
{{ usage }}
```

| | {{ metric }} on validation ({{ validation }} examples) | on test ({{ test }} examples) |
|---|---|---|
{% for row in scores -%}
| {{ row.who }} | {{ row.validation }} | {{ row.test }} |
{% endfor %}
| | |
|---|---|
{% for name, value in facts -%}
| {{ name }} | {{ value }} |
{% endfor %}
{% if shapes %}
| matrices | size | while training | parameters, ratio |
|---|---|---|---|
{% for s in shapes -%}
| {{ s.matrices }} | {{ s.rows }} x {{ s.cols }} | {{ s.shape }} | {{ "%.2f" % s.scale }} |
{% endfor %}
{% endif %}
{% if command -%}
```
{{ command }}
```

with the configuration
{%- else -%}
The configuration was
{%- endif %}

```yaml
{{ configuration }}
```
"""


def write_card(
    config: DistillConfig, metrics: dict[str, Any], prepared: Prepared, command: str | None, folder: Path
) -> None:
    """README.md in a student's folder, complete or absent.

    Args:
        config: what was asked for.
        metrics: what metrics.json holds.
        prepared: the data.
        command: as it was typed; None for a run from Python.
        folder: where the student is.
    """
    card = ModelCard.from_template(
        card_data(config, metrics, prepared.task),
        template_str=TEMPLATE,
        name=name_of(config),
        kind=metrics["class"],
        inference=f"{metrics['inference_params']:,}",
        teacher=teacher_of(config),
        usage=usage(prepared),
        metric=metrics["metric"],
        validation=metrics["student"]["validation"]["examples"],
        test=metrics["student"]["test"]["examples"],
        scores=[
            {"who": who} | {part: f"{metrics[who][part][metrics['metric']]:.4f}" for part in ("validation", "test")}
            for who in ("teacher", "student before training", "student")
        ],
        facts=[(name, said.replace("|", r"\|")) for name, said in facts(config, metrics, prepared)],  # of a file's name
        shapes=metrics["shapes"],
        command=command,
        configuration=yaml_of(config).strip(),
    )
    with replacing(folder / "README.md") as scratch:
        card.save(scratch)


PIPELINE = """from transformers import pipeline

ask = pipeline("{pipeline}", model=".")  # "." is this folder; or its name on the hub
answers = ask({asked})
print(answers)"""

EMBEDDING = """import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # "." is this folder; or its name on the hub
model = AutoModel.from_pretrained(".").eval()
batch = tokenizer(["A sentence.", "Another one."], {cut}, padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
embeddings = (hidden * mask).sum(1) / mask.sum(1)
print(torch.cosine_similarity(embeddings[0], embeddings[1], dim=0))"""


def usage(prepared: Prepared) -> str:
    """Code that asks the student in the folder of the card, with nothing but transformers."""
    task, cut = prepared.task, f"truncation=True, max_length={prepared.max_length}"
    if task.kind == "similarity":
        return EMBEDDING.format(cut=cut)
    if task.kind == "causal-lm":
        talks = isinstance(prepared.raw["train"][0][task.inputs[0]], list)
        asked = '[{"role": "user", "content": "A question?"}]' if talks else '"The beginning of a text"'
        asked += ", max_new_tokens=20, do_sample=False"
    elif task.kind == "image-classification":
        asked = '"photo.png"'
    elif task.kind == "token-classification":
        asked = '"Words of a sentence"'
    else:
        asked = '{"text": "A text", "text_pair": "and another"}' if len(task.inputs) == 2 else '"A text"'
        # Left to itself it says the likeliest class alone, and makes a probability of a number.
        asked += ', function_to_apply="none"' if task.kind == "regression" else ", top_k=None"
        asked += f", {cut}"
    return PIPELINE.format(pipeline=PIPELINES[task.kind], asked=asked)


def card_data(config: DistillConfig, metrics: dict[str, Any], task: Task) -> ModelCardData:
    results = [
        EvalResult(
            task_type=PIPELINES[task.kind],
            dataset_type=data_of(config),
            dataset_name=data_of(config),
            dataset_split=part,
            metric_type=name,
            metric_value=round(value, 6),
        )
        for part in ("validation", "test")
        for name, value in metrics["student"][part].items()
        if name != "examples"
    ]
    return ModelCardData(
        model_name=name_of(config),
        library_name="transformers",
        pipeline_tag=PIPELINES[task.kind],
        base_model=_base_model(config),
        datasets=hub_name(config.data.name.partition(":")[0]),
        metrics=[metrics["metric"]],
        tags=["knowledge-distillation", "opdf"],
        eval_results=results,
    )


def facts(config: DistillConfig, metrics: dict[str, Any], prepared: Prepared) -> list[tuple[str, str]]:
    objective, over, constraint = config.objective, config.overparam, config.constraint
    method = [objective.name, *(f"{k} {v}" for k, v in objective.options.items() if v is not None)]
    rows = [f"{len(rows):,} {part}" for part, rows in prepared.raw.items()]
    pulled = f"weight {constraint.weight}, layers {constraint.layer_map}" if constraint else "none"
    if metrics["constraint_grad_ratio"] is not None:
        ratio = metrics["constraint_grad_ratio"]
        pulled += f"; its gradient at most {ratio:.2g} of the distillation loss's, of the steps that were logged"
    return [
        ("data", f"{data_of(config)}: {', '.join(rows)} rows, seed {config.data.seed}"),
        ("teacher", teacher_of(config)),
        ("objective", ", ".join(method)),
        ("over-parameterization", f"{'SVD' if over.ones == 0 else 'MPO'}, rate {over.lr_scaling}" if over else "none"),
        ("constraint loss", pulled),
        ("parameters while training", f"{metrics['train_params']:,}"),
        ("parameters at inference", f"{metrics['inference_params']:,}"),
        ("optimizer steps", f"{metrics['steps']:,} in {metrics['train_seconds']:,} s, seed {metrics['seed']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())),
    ]


def teacher_of(config: DistillConfig) -> str:
    options = config.teacher
    if options.models is not None:
        weights = f" with weights {', '.join(f'{w:g}' for w in options.weights)}" if options.weights else ""
        return f"the mean{weights} of {', '.join(map(_model, options.models))}"
    if options.config is not None:
        name = f"a {options.config.get('model_type')} built from a configuration"
    else:
        name = _model(options.model)
    return f"{name}, fine-tuned on the same data" if options.finetune else name


def _base_model(config: DistillConfig) -> str | list[str] | None:
    """The teachers' names on the hub, as far as they have some."""
    found = [name for name in map(_hub_model, config.teacher.models or (config.teacher.model,)) if name]
    return found if len(found) > 1 else next(iter(found), None)


def _model(name: str | None) -> str:
    return _hub_model(name) or Path(str(name)).name


def _hub_model(name: str | None) -> str | None:
    return MINILM if name == "minilm" else hub_name(name)


def data_of(config: DistillConfig) -> str:
    return hub_name(config.data.name) or Path(config.data.name).name


def name_of(config: DistillConfig) -> str:
    return Path(config.output).resolve().name


def hub_name(name: str | None) -> str | None:
    """A name that is one of the hub's, not a folder or file of this machine."""
    return name if name and name.count("/") == 1 and name[0] not in "./~" and not Path(name).exists() else None
