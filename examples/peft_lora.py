"""PEFT: the two matrices of every LoRA adapter are over-parameterized while they train, and merged as always."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import opdf
from opdf.data import encode, load_data, minilm

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
torch.manual_seed(0)
raw, task = load_data("amazon-sentiment")
tokenizer = AutoTokenizer.from_pretrained(minilm())
data, collate = encode(raw, task, tokenizer, max_length=32)
model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
adapters = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
model = get_peft_model(model, adapters).train()

# lora_B starts at zero; over-parameterized it still does, and still moves.
config = opdf.OverParamConfig(ones=1, targets=["lora_A.default", "lora_B.default"])
overparam = opdf.overparameterize(model, config)
optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-3)

losses = []
for step, batch in zip(range(steps), DataLoader(data["train"], 16, shuffle=True, collate_fn=collate), strict=False):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    if step % 20 == 0:
        print(f"step {step}: loss {losses[-1]:.4f}")

model.eval()
with torch.no_grad():
    adapted = model(**batch).logits
    merged = model.merge_and_unload()  # a plain BertForSequenceClassification
    difference = (merged(**batch).logits - adapted).abs().max().item()
print(f"{len(overparam.matrices)} adapter matrices; merged, the logits differ by {difference:.1e}")
