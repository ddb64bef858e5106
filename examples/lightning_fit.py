"""Lightning: configure_optimizers returns the over-parameterized optimizer; clipping, checkpoints and resuming work."""

import sys
import tempfile

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import opdf
from opdf.data import encode, load_data
from opdf.distill import LogitsDistillation, keep_layers

SMALL = {"image_size": 8, "patch_size": 2, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


class Digits(lightning.LightningModule):
    """Trains a classifier from labels, or from a teacher and labels."""

    def __init__(self, model, teacher=None):
        super().__init__()
        self.model, self.objective = model, LogitsDistillation(alpha=0.9 if teacher else 0.0)
        self.teacher = [teacher and teacher.eval()]  # in a list, to be no part of this module and its checkpoints

    def training_step(self, batch, _):
        items = self.objective.count_items(self.model, batch)
        losses = self.objective.losses(self.model, self.teacher[0], batch, items)
        self.log_dict({"loss": losses.total.detach(), **losses.parts}, prog_bar=True)
        return losses.total

    def configure_optimizers(self):
        overparam = opdf.overparameterize(self.model, opdf.OverParamConfig(ones=2))
        return overparam.optimizer(torch.optim.AdamW, lr=1e-3)


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
lightning.seed_everything(0)
raw, task = load_data("digits")
processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
data, collate = encode(raw, task, processor)
batches = DataLoader(data["train"], batch_size=64, shuffle=True, collate_fn=collate)
teacher = ViTForImageClassification(ViTConfig(**SMALL, intermediate_size=64, num_labels=10))
with tempfile.TemporaryDirectory() as folder:
    options = {"default_root_dir": folder, "logger": False, "accelerator": "cpu", "enable_progress_bar": steps > 20}
    lightning.Trainer(max_steps=steps, enable_checkpointing=False, **options).fit(Digits(teacher), batches)
    student = keep_layers(teacher, 2)
    trainer = lightning.Trainer(max_steps=steps, gradient_clip_val=1.0, **options)
    trainer.fit(Digits(student, teacher), batches)
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
print(f"loss {trainer.callback_metrics['loss']:.4f}")
