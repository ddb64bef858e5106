"""TRL's SFTTrainer: a decoder learns from tokens and from a teacher's next-token distribution, over-parameterized."""

import sys
import tempfile

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import opdf
from opdf.data import load_data
from opdf.distill import LogitsDistillation, keep_layers

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
torch.manual_seed(0)
data = load_data("tweet-scores")[0]["train"].select_columns("text")
bpe = ByteLevelBPETokenizer()
bpe.train_from_iterator(data["text"][:], vocab_size=600, special_tokens=["<end>"], show_progress=False)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")
config = LlamaConfig(vocab_size=600, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=64, eos_token_id=0, pad_token_id=0)  # fmt: skip
teacher = LlamaForCausalLM(config)


class Distillation(SFTTrainer):
    """SFT's data handling with the loss of a teacher beside that of the labels."""

    objective = LogitsDistillation(temperature=1.0, alpha=0.5)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        items = self.objective.count_items(model, inputs)
        return self.objective.losses(model, teacher.eval(), inputs, items).total


def fit(trainer, model, folder, **options):
    arguments = SFTConfig(
        folder, max_steps=steps, max_length=48, per_device_train_batch_size=16, learning_rate=2e-3, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trained = trainer(model, arguments, train_dataset=data, processing_class=tokenizer, **options)
    trained.train()
    return [log["loss"] for log in trained.state.log_history if "loss" in log]


with tempfile.TemporaryDirectory() as folder:
    fit(SFTTrainer, teacher, folder)
    student = keep_layers(teacher, 2)
    optimizer = opdf.overparameterize(student, opdf.OverParamConfig(ones=1)).optimizer(torch.optim.AdamW, lr=2e-3)
    losses = fit(Distillation, student, folder, optimizers=(optimizer, None))
print(f"student's loss from {losses[0]:.3f} to {losses[-1]:.3f}")
