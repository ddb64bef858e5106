"""A compiled student and one with gradient checkpointing: nothing is special, for the optimizer is outside of them."""

import sys

import torch
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import opdf
from opdf.data import encode, load_data
from opdf.distill import LogitsDistillation, keep_layers

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
backend = sys.argv[2] if len(sys.argv) > 2 else "inductor"  # which needs a C++ compiler; "aot_eager" does not
torch.manual_seed(0)
raw, task = load_data("digits")
data, collate = encode(raw, task, ViTImageProcessorPil(size={"height": 8, "width": 8}))
batches = list(DataLoader(data["train"], batch_size=64, collate_fn=collate, drop_last=True))
shape = {"image_size": 8, "patch_size": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
config = ViTConfig(**shape, num_hidden_layers=4, num_labels=10, initializer_range=0.2)
teacher = ViTForImageClassification(config).eval()
objective = LogitsDistillation()


def train(change):
    student = keep_layers(teacher, 2).train()
    optimizer = opdf.overparameterize(student, opdf.OverParamConfig(ones=2)).optimizer(torch.optim.AdamW, lr=1e-3)
    model = change(student)
    for step in range(steps):
        batch = batches[step % len(batches)]
        objective.losses(model, teacher, batch, torch.tensor(64)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student


def checkpointed(model):
    model.gradient_checkpointing_enable()
    return model


students = {
    "plain": train(lambda model: model),
    "compiled": train(lambda model: torch.compile(model, backend=backend)),
    "checkpointed": train(checkpointed),
}
weights = {name: torch.cat([p.detach().flatten() for p in s.parameters()]) for name, s in students.items()}
for name in ("compiled", "checkpointed"):
    print(f"{name}: weights differ from plain by {(weights[name] - weights['plain']).abs().max():.1e}")
