"""Sentence embeddings in a plain PyTorch loop: 3 of MiniLM's 6 layers learn its vectors, over-parameterized."""

import sys

import torch
from transformers import AutoModel, AutoTokenizer

import opdf
from opdf.data import load_data, minilm
from opdf.distill import keep_layers, mean_pooled

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
torch.manual_seed(0)
texts = load_data("nyt-scores")[0]["train"]["text"][:]
tokenizer = AutoTokenizer.from_pretrained(minilm())
teacher = AutoModel.from_pretrained(minilm()).eval()
student = keep_layers(teacher, 3).train()

overparam = opdf.overparameterize(student, opdf.OverParamConfig(ones=1))
overparam.align(teacher, opdf.Constraint(weight=0.1))  # optional: the constraint loss
optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-4)

losses = []
for _ in range(steps):
    rows = [texts[k] for k in torch.randint(len(texts), (16,))]
    batch = tokenizer(rows, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        target = mean_pooled(teacher(**batch).last_hidden_state, batch["attention_mask"])
    found = mean_pooled(student(**batch).last_hidden_state, batch["attention_mask"])
    loss = (1 - torch.cosine_similarity(found, target)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"cosine distance {losses[0]:.4f} to {losses[-1]:.4f}")  # student.save_pretrained writes a plain BertModel
