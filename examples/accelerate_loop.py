"""accelerate: prepare the student and its optimizer, not the teacher; `accelerate launch` runs it on many devices."""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

import opdf
from opdf.data import load_data, minilm
from opdf.distill import EmbeddingDistillation, keep_layers

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision="bf16")
tokenizer = AutoTokenizer.from_pretrained(minilm())
rows = load_data("nyt-scores")[0]["train"].map(
    lambda row: tokenizer(row["text"], truncation=True, max_length=32), remove_columns=["text", "label"]
)
teacher = AutoModel.from_pretrained(minilm()).eval().to(accelerator.device)
student = keep_layers(teacher, 3)
optimizer = opdf.overparameterize(student, opdf.OverParamConfig(ones=1)).optimizer(torch.optim.AdamW, lr=1e-4)
batches = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer))
student, optimizer, batches = accelerator.prepare(student.train(), optimizer, batches)

objective = EmbeddingDistillation()
objective.prepare(accelerator.unwrap_model(student), teacher)
losses = []
for step, batch in zip(range(2 * steps), batches, strict=False):
    with accelerator.accumulate(student):
        losses.append(objective.losses(student, teacher, batch, objective.count_items(student, batch)).total)
        accelerator.backward(losses[-1])
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if step % 40 == 0:
        accelerator.print(f"step {step // 2}: cosine distance {losses[-1].item():.4f}")
# accelerator.unwrap_model(student).save_pretrained("student") writes a plain BertModel.
